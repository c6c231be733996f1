package protocol_test

import (
	"container/heap"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	. "github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

var update = flag.Bool("update", false, "rewrite the scenarios' output")

// TestScenarios replays testdata/*.txt: lines with > are commands, lines with
// # tell the story, all others are what must happen. Sessions, group and
// coordinator are the real ones; the database, the network and the clock are
// made up here. A request takes 1ms to the database and its reply 1ms back; a
// handler returns 5ms after it was asked to.
//
//	settings heartbeat=5s lease=30s drain=60s window=500ms replacement=0 max=0 partitions=1
//	join a b     start workers          leave a      ask a to stop
//	crash a      end its process        run 10s      let time pass
//	hang a       its handlers don't return, until: release a
//	freeze a     stop its process, until: thaw a
//	cut a        lose its requests, until: heal a
//	lose a       lose its next reply, after the request was carried out
//	slow a       keep back its next reply, until: deliver a
//	clock 1h     step the database's clock
//	order pause p; order rewind p 40; order drain a
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := replay(t, string(want))
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			} else if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("-want +got (-update rewrites, then read the diff):\n%s", diff)
			}
		})
	}
}

func replay(t *testing.T, script string) string {
	s := newStage(t)
	var out strings.Builder
	for line := range strings.Lines(script) {
		if command, ok := strings.CutPrefix(line, "> "); ok {
			out.WriteString(line)
			s.command(strings.Fields(command))
			out.WriteString(s.out.String())
			s.out.Reset()
		} else if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
			out.WriteString(line)
		}
	}
	return out.String()
}

// A stage is a small world with one group.
type stage struct {
	t        *testing.T
	out      strings.Builder
	timing   Timing
	settings Request

	start, now time.Time
	step       time.Duration // how far the database's clock was stepped
	events     agenda
	sequence   int

	group   Group
	stepAt  time.Time
	workers []*actor
}

type actor struct {
	name    string
	session *Session
	running *Share
	wake    int // the newest Wake's number

	crashed, frozen, cut, lose, slow, hangs bool

	asked   bool     // handlers were asked to return
	mailbox []Input  // came while frozen
	kept    []func() // replies that are kept back
}

func newStage(t *testing.T) *stage {
	start := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	return &stage{
		t: t, start: start, now: start,
		timing:   Timing{Heartbeat: 5 * time.Second, Lease: 30 * time.Second, Drain: time.Minute},
		settings: Request{JoinWindow: 500 * time.Millisecond},
	}
}

func (s *stage) command(words []string) {
	switch verb, args := words[0], words[1:]; verb {
	case "settings":
		for _, a := range args {
			s.set(a)
		}
	case "join":
		for _, name := range args {
			w := &actor{name: name, session: NewSession(WorkerID(name), s.timing, s.settings)}
			s.workers = append(s.workers, w)
			s.feed(w, Tick{})
		}
	case "run":
		s.run(s.duration(args[0]))
	case "clock":
		s.step += s.duration(args[0])
	case "order":
		s.order(args)
	default:
		for _, name := range args {
			s.act(verb, s.worker(name))
		}
	}
}

func (s *stage) set(setting string) {
	key, value, _ := strings.Cut(setting, "=")
	switch key {
	case "heartbeat":
		s.timing.Heartbeat = s.duration(value)
	case "lease":
		s.timing.Lease = s.duration(value)
	case "drain":
		s.timing.Drain = s.duration(value)
	case "window":
		s.settings.JoinWindow = s.duration(value)
	case "replacement":
		s.settings.Vacate = s.duration(value)
	case "max", "partitions":
		n := map[string]*int{"max": &s.settings.MaxPartitions, "partitions": &s.settings.Wants}[key]
		if _, err := fmt.Sscan(value, n); err != nil {
			s.t.Fatal(err)
		}
	default:
		s.t.Fatalf("there is no setting %q", key)
	}
}

// order is what an operator's program does.
func (s *stage) order(args []string) {
	o := Order{Kind: OrderKind(args[0])}
	switch o.Kind {
	case OrderDrain, OrderUndrain:
		o.Worker = WorkerID(args[1])
	case OrderRewind:
		if _, err := fmt.Sscan(args[2], &o.Position); err != nil {
			s.t.Fatal(err)
		}
		fallthrough
	default:
		o.Projection = strings.ReplaceAll(args[1], "all", All)
	}
	if err := o.Check(s.group); err != nil {
		s.say("op", "%s: %v", o, err)
		return
	}
	s.database(nil, Request{Order: &o})
}

func (s *stage) act(verb string, w *actor) {
	switch verb {
	case "leave":
		s.feed(w, Shutdown{Replaced: true})
	case "crash":
		w.crashed, w.running = true, nil
	case "freeze":
		w.frozen = true
	case "thaw":
		w.frozen = false
		mail := w.mailbox
		w.mailbox = nil
		for _, in := range mail {
			s.feed(w, in)
		}
		s.feed(w, Tick{})
	case "cut":
		w.cut = true
	case "heal":
		w.cut = false
	case "lose":
		w.lose = true
	case "slow":
		w.slow = true
	case "deliver":
		w.slow = false
		for _, reply := range w.kept {
			reply()
		}
		w.kept = nil
	case "hang":
		w.hangs = true
	case "release":
		w.hangs = false
		if w.asked {
			s.stopping(w)
		}
	default:
		s.t.Fatalf("there is no command %q", verb)
	}
}

func (s *stage) worker(name string) *actor {
	i := slices.IndexFunc(s.workers, func(w *actor) bool { return w.name == name })
	if i < 0 {
		s.t.Fatalf("there is no worker %q", name)
	}
	return s.workers[i]
}

func (s *stage) duration(text string) time.Duration {
	d, err := time.ParseDuration(text)
	if err != nil {
		s.t.Fatal(err)
	}
	return d
}

func (s *stage) say(who, format string, args ...any) {
	fmt.Fprintf(&s.out, "%+9.3fs  %-3s %s\n", s.now.Sub(s.start).Seconds(), who, fmt.Sprintf(format, args...))
}

// feed hands an input to a worker and carries out what it says.
func (s *stage) feed(w *actor, in Input) {
	if w.crashed {
		return
	}
	if w.frozen {
		if _, tick := in.(Tick); !tick {
			w.mailbox = append(w.mailbox, in)
		}
		return
	}
	for _, action := range w.session.Next(s.now, in) {
		switch a := action.(type) {
		case Sync:
			s.send(w, a.Request)
		case Start:
			s.say(w.name, "starts %s", a.Share)
			s.checkOwner(w, a.Share)
			w.running, w.asked = &a.Share, false
		case Drain:
			s.say(w.name, "drains generation %d", a.Generation)
			s.stopping(w)
		case Cancel:
			s.say(w.name, "cancels generation %d%s", a.Generation, map[bool]string{true: ": its lease is over"}[a.Lost])
			s.stopping(w)
		case Exit:
			s.say(w.name, "exits: %s", a.Cause)
			w.crashed, w.running = true, nil // Run has returned, and the process ends
		case Wake:
			w.wake++
			number := w.wake
			s.at(a.At, func() {
				if w.wake == number {
					s.feed(w, Tick{})
				}
			})
		}
	}
}

// stopping lets the worker's handlers return.
func (s *stage) stopping(w *actor) {
	w.asked = true
	if w.hangs || w.running == nil {
		return
	}
	generation := w.running.Generation
	s.after(5*time.Millisecond, func() {
		if w.running == nil || w.running.Generation != generation || w.crashed {
			return
		}
		s.say(w.name, "has stopped generation %d", generation)
		w.running = nil
		s.feed(w, Stopped{generation, true})
	})
}

// checkOwner is S1 on the stage. What a frozen process runs past its lease is
// the documented exception.
func (s *stage) checkOwner(w *actor, a Share) {
	for _, o := range s.workers {
		if o == w || o.running == nil || o.frozen {
			continue
		}
		if o.running.Generation != a.Generation || slices.ContainsFunc(a.Partitions, func(k int) bool { return slices.Contains(o.running.Partitions, k) }) {
			s.say(w.name, "VIOLATION: %s still runs %s", o.name, o.running)
			s.t.Errorf("%s starts %s while %s runs %s", w.name, a, o.name, o.running)
		}
	}
}

// send carries a request to the database and its reply back.
func (s *stage) send(w *actor, r Request) {
	sent := s.now
	lost := func() {
		s.after(s.timing.Lease/3, func() { s.feed(w, SyncFailed{Request: r, Sent: sent}) })
	}
	if w.cut {
		lost()
		return
	}
	s.after(time.Millisecond, func() {
		view := s.database(w, r)
		if w.lose {
			w.lose = false
			s.say(w.name, "loses a reply")
			lost()
			return
		}
		reply := func() { s.feed(w, Synced{Request: r, Sent: sent, View: view}) }
		if w.slow {
			w.kept = append(w.kept, reply)
		} else {
			s.after(time.Millisecond, reply)
		}
	})
}

// database does what the store does with a request.
func (s *stage) database(w *actor, r Request) View {
	now, before := s.now.Add(s.step), s.group
	s.group = Apply(s.group, r, now)
	var d Decision
	if r.Heartbeat {
		d.StepAt = s.stepAt
	} else {
		s.group, d = Step(s.group, now, r.Watch)
		if before.Spares(r, s.group) {
			v := s.group.View(r.Worker, now, d)
			s.group, v.ReadOnly = before, true
			return v
		}
		s.stepAt = d.StepAt
		if d.Opened || d.Activated || len(d.Expired)+len(d.Taken)+len(d.Lapsed) > 0 {
			s.say("db", "%s: %s (%s)", d, s.group, s.group.Reason)
			for _, r := range d.Rewinds {
				s.say("db", "sets %s to %d", r.Projection, r.Position)
			}
		}
	}
	if place, vacant := s.group.Vacancy(r.Worker); vacant {
		s.say("db", "%s is vacant for %s: %s", r.Worker, place.LeaseEnd.Sub(now), s.group)
	}
	return s.group.View(r.Worker, now, d)
}

// agenda is what will happen, in order.
type agenda []event

type event struct {
	at       time.Time
	sequence int
	do       func()
}

func (a agenda) Len() int { return len(a) }
func (a agenda) Less(i, j int) bool {
	if !a[i].at.Equal(a[j].at) {
		return a[i].at.Before(a[j].at)
	}
	return a[i].sequence < a[j].sequence
}
func (a agenda) Swap(i, j int) { a[i], a[j] = a[j], a[i] }
func (a *agenda) Push(e any)   { *a = append(*a, e.(event)) }
func (a *agenda) Pop() any {
	last := (*a)[len(*a)-1]
	*a = (*a)[:len(*a)-1]
	return last
}

func (s *stage) at(t time.Time, do func()) {
	s.sequence++
	heap.Push(&s.events, event{t, s.sequence, do})
}

func (s *stage) after(d time.Duration, do func()) { s.at(s.now.Add(d), do) }

func (s *stage) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.events) > 0 && !s.events[0].at.After(end) {
		e := heap.Pop(&s.events).(event)
		if e.at.After(s.now) {
			s.now = e.at
		}
		e.do()
	}
	s.now = end
}
