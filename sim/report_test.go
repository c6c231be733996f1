package sim

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	gocmp "github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite the expected reports and traces")

// golden compares got with testdata/report/<name>.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", "report", name+".txt")
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s -want +got (-update rewrites, then read the diff):\n%s", name, diff)
	}
}

// A tale is a hand-written history, in any order.
type tale []fact

func (t *tale) tell(at float64, f fact) {
	f.at = time.Duration(at*1e6) * time.Microsecond
	*t = append(*t, f)
}

func (t tale) history() history {
	slices.SortStableFunc(t, func(a, b fact) int { return cmp.Compare(a.at, b.at) })
	for i := range t {
		t[i].step = i
	}
	return history{facts: t}
}

// joins starts a worker and makes it a member.
func (t *tale) joins(at float64, worker string) {
	t.tell(at, fact{kind: workerStarts, worker: worker, text: "version 0"})
	t.asks(at+0.01, worker, "join")
}

func (t *tale) asks(at float64, worker, text string) {
	t.tell(at, fact{kind: sessionAsks, worker: worker, length: 30 * time.Second, text: text})
}

// generation opens at from, is activated at to, and is run by the workers.
func (t *tale) generation(from, to float64, n int64, reason string, workers ...string) {
	t.tell(from, fact{kind: groupOpened, worker: workers[0], generation: n, total: len(workers), text: reason + "; {" + strings.Join(workers, " ") + "}"})
	t.tell(to, fact{kind: groupActivated, worker: workers[len(workers)-1], generation: n, total: len(workers), text: "{" + strings.Join(workers, " ") + "}"})
	for i, w := range workers {
		t.tell(to+0.1+0.05*float64(i), fact{kind: runStarts, worker: w, generation: n, partition: i, total: len(workers)})
	}
}

func (t *tale) stops(at float64, generation int64, workers ...string) {
	for i, w := range workers {
		t.tell(at, fact{kind: runDrains, worker: w, generation: generation})
		t.tell(at+0.3+0.2*float64(i), fact{kind: runStopped, worker: w, generation: generation})
	}
}

// works handles, commits and sends heartbeats from one time to another.
func (t *tale) works(from, to float64, worker string, generation int64, partition, total int) {
	position := int64(from * 10)
	for at := from; at < to; at += 1.1 {
		for i, projection := range []string{"orders", "invoices"} {
			lane := fact{worker: worker, projection: projection, generation: generation, partition: partition, total: total}
			begin, call := at+0.2*float64(i), len(*t)
			lane.events = []event{{position: position, aggregate: fmt.Sprint("a", position%7)}}
			lane.kind, lane.call = handlerBegins, call
			t.tell(begin, lane)
			t.tell(begin+0.3, fact{kind: handlerEnds, worker: worker, projection: projection, call: call})
			lane.kind, lane.call, lane.from, lane.to = committed, 0, position-1, position
			t.tell(begin+0.35, lane)
		}
		position += 11
	}
	for at := from + 2; at < to; at += 5 {
		t.asks(at, worker, "heartbeat")
	}
}

// tellOrdinary has three workers. One freezes for longer than its lease: it is removed, the
// others take its work, and it rejoins.
func tellOrdinary() history {
	var t tale
	t.joins(0, "w1")
	t.generation(0.1, 0.1, 1, "first worker", "w1")
	t.works(0.5, 3, "w1", 1, 0, 1)
	t.joins(3, "w2")
	t.stops(3.6, 1, "w1")
	t.generation(3.5, 4.2, 2, "w2 joined", "w1", "w2")
	t.works(4.5, 11, "w1", 2, 0, 2)
	t.works(4.6, 11, "w2", 2, 1, 2)
	t.joins(11, "w3")
	t.stops(11.7, 2, "w1", "w2")
	t.generation(11.5, 12.5, 3, "w3 joined", "w1", "w2", "w3")
	t.works(13, 62, "w1", 3, 0, 3)
	t.works(13.1, 30, "w2", 3, 1, 3)
	t.works(13.2, 62, "w3", 3, 2, 3)

	lane := fact{worker: "w2", projection: "orders", generation: 3, partition: 1, total: 3, events: []event{{position: 300, aggregate: "a3"}}}
	lane.kind, lane.call = handlerBegins, 90001
	t.tell(30.9, lane)
	t.tell(31, fact{kind: faultFreeze, worker: "w2", length: 44 * time.Second})
	t.tell(62.2, fact{kind: workerExpired, worker: "w2", text: "w2"})
	t.stops(62.4, 3, "w1", "w3")
	t.generation(62.2, 63.2, 4, "w2 expired", "w1", "w3")
	t.works(64, 76, "w1", 4, 0, 2)
	t.works(64.1, 76, "w3", 4, 1, 2)
	t.tell(75, fact{kind: faultThaw, worker: "w2"})
	t.tell(75.1, fact{kind: runCancels, worker: "w2", generation: 3, text: "lost"})
	t.tell(75.2, fact{kind: handlerEnds, worker: "w2", projection: "orders", call: 90001})
	lane.kind, lane.call, lane.from, lane.to = refused, 0, 299, 300
	t.tell(75.4, lane)
	t.tell(75.5, fact{kind: runStopped, worker: "w2", generation: 3})
	t.asks(75.6, "w2", "join")
	t.stops(76.2, 4, "w1", "w3")
	t.generation(76.1, 77.1, 5, "w2~2 joined", "w1", "w2", "w3")
	t.works(78, 104, "w1", 5, 0, 3)
	t.works(78.1, 104, "w2", 5, 1, 3)
	t.works(78.2, 104, "w3", 5, 2, 3)
	t.tell(85, fact{kind: faultCutOff, worker: "w3", length: 8 * time.Second})
	t.tell(93, fact{kind: faultMended, worker: "w3"})
	t.tell(86, fact{kind: faultSlow, worker: "w1", length: 2 * time.Second, text: "heartbeat"})
	t.tell(89, fact{kind: faultLost, worker: "w1", text: "reply: commit"})
	t.tell(95, fact{kind: faultDatabaseDown, length: 3 * time.Second})
	t.tell(98, fact{kind: faultDatabaseUp})
	t.tell(100, fact{kind: faultClockStep, length: -10 * time.Second})
	t.tell(104, fact{kind: faultCrash, worker: "w1"})
	t.tell(104, fact{kind: workerGone, worker: "w1", text: "crashed"})
	t.tell(110, fact{kind: healed})
	t.joins(110.5, "w4")
	t.stops(111.1, 5, "w2", "w3")
	t.generation(111, 112, 6, "w4 joined", "w4", "w2", "w3")
	t.works(112.4, 139, "w2", 6, 1, 3)
	t.works(112.5, 139, "w3", 6, 2, 3)
	t.works(112.6, 139, "w4", 6, 0, 3)
	t.tell(130, fact{kind: settled})
	t.tell(140, fact{kind: ended})
	for i := range 100 {
		f := fact{kind: appended, events: []event{{position: int64(10 * i), aggregate: fmt.Sprint("a", i%7)}}}
		if i%17 == 16 {
			f.kind = rolledBack
		}
		t.tell(float64(i)*1.05, f)
	}
	for _, w := range []string{"w1", "w3"} {
		t.tell(40, fact{kind: gapWaited, worker: w, projection: "orders", to: 381, text: "session 12"})
		t.tell(46, fact{kind: gapPassed, worker: w, projection: "orders", to: 390})
	}
	return t.history()
}

// tellTwoOwners has a worker that freezes for a moment, another one that takes over without
// waiting, and both at the same partition.
func tellTwoOwners() (history, violation) {
	var t tale
	all := []string{"w1", "w2", "w3", "w4"}
	for i, w := range all {
		t.joins(0.1*float64(i), w)
	}
	t.generation(0.6, 0.7, 9, "first worker; 3 joined", all...)
	for i, w := range all {
		to := 39.5
		if w == "w2" {
			to = 37
		}
		t.works(1.2+0.1*float64(i), to, w, 9, i, 4)
	}
	t.tell(38.1, fact{kind: faultFreeze, worker: "w2", length: 3 * time.Second})
	t.stops(39.6, 9, "w1", "w3", "w4")
	t.generation(39.5, 40.3, 10, "w2 expired", "w1", "w4", "w3")
	t.tell(39.5, fact{kind: workerExpired, worker: "w2", text: "w2"})
	t.tell(41.1, fact{kind: faultThaw, worker: "w2"})
	mine := fact{kind: handlerBegins, worker: "w4", projection: "orders", generation: 10, partition: 1, total: 3, events: []event{{position: 5510, aggregate: "a3"}}, call: 90001}
	t.tell(41, mine)
	mine.worker, mine.generation, mine.total, mine.call = "w2", 9, 4, 90002
	mine.events = []event{{position: 5512, aggregate: "a3"}}
	t.tell(41.2, mine)
	h := t.history()
	v := violation{promise: oneOwner, what: "w4 (generation 10) and w2 (generation 9) handled slot 1705 of projection orders at the same time"}
	for _, f := range h.facts {
		if f.kind == faultFreeze || f.kind == workerExpired || f.kind == groupActivated && f.generation == 10 || f.call > 90000 {
			v.facts = append(v.facts, f)
		}
	}
	return h, v
}

// tellEveryKind has a fact of every kind, and one of each kind with missing fields.
func tellEveryKind() history {
	var t tale
	t.joins(0, "w1")
	full := fact{worker: "w1", projection: "orders", generation: 1, partition: 0, total: 1, call: 1, from: 1, to: 2, length: time.Second,
		events: []event{{position: 2, aggregate: "a1"}}}
	for k := workerStarts; k <= ended; k++ {
		f := full
		f.kind, f.text = k, fmt.Sprintf("kind-%d.", k)
		t.tell(1+float64(k), f)
		f.worker = ""
		f.call, f.text = 2, fmt.Sprintf("kind-%d-without-worker.", k)
		t.tell(1.5+float64(k), f)
	}
	return t.history()
}

// tellMuch has n random facts of workers.
func tellMuch(n int) history {
	r := rand.New(rand.NewPCG(1, 2))
	var t tale
	for len(t) < n {
		at, w := 240*r.Float64(), fmt.Sprint("w", 1+r.IntN(6))
		f := fact{worker: w, projection: []string{"orders", "invoices", "mails"}[r.IntN(3)], generation: int64(at / 4), partition: r.IntN(6), total: 6,
			events: []event{{position: int64(at * 100), aggregate: "a1"}, {position: int64(at*100) + 1, aggregate: "a2"}}, from: int64(at * 100), to: int64(at*100) + 1}
		switch r.IntN(24) {
		case 0:
			f.kind = kind(r.IntN(int(ended)))
		case 1:
			f.kind, f.length, f.text = sessionAsks, 30*time.Second, "heartbeat as w3: generation 12 3/6, holds 0"
		case 2:
			f.kind, f.worker = appended, ""
		case 3, 4, 5, 6:
			f.kind = committed
		default:
			f.kind, f.call = handlerBegins, len(t)
			t.tell(at, f)
			f = fact{kind: handlerEnds, worker: w, projection: f.projection, call: f.call}
			at += 0.02 * r.Float64()
		}
		t.tell(at, f)
	}
	return t.history()
}

func TestReport(t *testing.T) {
	h, v := tellTwoOwners()
	whole := failure{
		command: "go test ./sim -run 'TestSeeds$' -sim.seed=8347", history: h, violation: v,
		trace: "failures/8347.txt", timeline: "failures/8347.html", replay: "identical",
		shrunk: "2 workers, 1 fault, 14s from 6 workers, 9 faults, 120s",
	}

	// With many workers, only those of the violation have a column. Long texts stay within
	// the page.
	many := whole
	many.history.facts = slices.Clone(h.facts)
	for i := range 20 {
		many.history.facts = append(many.history.facts, fact{kind: workerStarts, worker: fmt.Sprint("w", 5+i), step: len(many.history.facts), at: 50 * time.Second})
	}
	many.violation.facts = slices.Clone(v.facts)
	many.violation.facts[1].text = strings.TrimSpace(strings.Repeat("w17~3 ", 80))
	many.violation.what += ", " + strings.Repeat("and this goes on ", 10)
	many.shrunk, many.timeline = "", ""

	// A violated promise about what must happen has no two facts that contradict each
	// other. Times that one decimal does not distinguish get more.
	late := failure{command: "go test ./sim -run 'TestSeeds$' -sim.seed=12", history: h, violation: violation{
		promise: recovers, what: "event 17 of projection orders was not handled 31.2s after the faults stopped",
		facts: []fact{
			{step: 4, at: 1200100 * time.Microsecond, kind: appended, events: []event{{position: 17, aggregate: "a3"}}},
			{step: 5, at: 1200900 * time.Microsecond, kind: healed},
			{step: 1205, at: 131 * time.Second, kind: settled},
		}}}

	// A violation with too many facts to show.
	crowd := failure{command: "go test ./sim -run 'TestSeeds$' -sim.seed=13", history: h, violation: violation{
		promise: staysStill, what: "30 generations were opened", facts: h.facts[:60]}, replay: "DIFFERS: something is not decided by the seed"}

	for name, r := range map[string]failure{"two_owners": whole, "many_workers": many, "liveness": late, "many_facts": crowd} {
		var out strings.Builder
		report(&out, r)
		golden(t, name, out.String())
		for line := range strings.Lines(out.String()) {
			if utf8.RuneCountInString(line) > 105 {
				t.Errorf("%s: a line of %d columns: %s", name, utf8.RuneCountInString(line), line)
			}
		}
	}

	var out strings.Builder
	report(&out, failure{command: "x", violation: violation{promise: "x", what: "nothing is known"}})
	if want := "reproduce: x\nSAFETY x   step 0  t=+0.0s\n  nothing is known\n"; out.String() != want {
		t.Errorf("an empty history: %s", gocmp.Diff(want, out.String()))
	}
}

func TestTrace(t *testing.T) {
	h, _ := tellTwoOwners()
	h.facts = h.facts[len(h.facts)-25:]
	var out strings.Builder
	trace(&out, h)
	golden(t, "trace", out.String())

	// Each fact has one line, whatever its text is.
	h = tellEveryKind()
	h.facts[3].text += "\npanic\r\n\x1b[31m\tred"
	out.Reset()
	trace(&out, h)
	if n := strings.Count(out.String(), "\n"); n != len(h.facts) {
		t.Errorf("%d lines for %d facts", n, len(h.facts))
	}
	for k := workerStarts; k <= ended; k++ {
		if !strings.Contains(out.String(), fmt.Sprintf("kind-%d.", k)) {
			t.Errorf("kind %d is missing", k)
		}
	}

	// The trace shows fields in which two runs can differ, even if the text leaves them
	// out.
	base := fact{kind: committed, worker: "w1", projection: "p", generation: 1, total: 1, from: 1, to: 9}
	for i := range 8 {
		base.events = append(base.events, event{position: int64(i + 1), aggregate: "a1"})
	}
	other := base
	other.events = slices.Clone(base.events)
	other.events[4].aggregate = "a2"
	var one, two strings.Builder
	trace(&one, history{facts: []fact{base}})
	trace(&two, history{facts: []fact{other}})
	if one.String() == two.String() {
		t.Errorf("the trace hides a difference: %s", one.String())
	}
}
