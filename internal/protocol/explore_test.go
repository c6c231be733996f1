//go:build !race

// One thread: the race detector would learn nothing, and take ten times as long.

package protocol

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"testing"
	"time"
)

// Random worlds find what is likely. In a world small enough, everything that
// can happen can be tried: explore goes from a state to all that may come next,
// breadth first, and so to every state that any order of events leads to.

// A move is one thing that may happen next. What the numbers mean is up to the
// space.
type move struct {
	what       uint8
	who, which int8
}

// A space is a state, from which explore reaches others. States are never
// changed, so they may share what they have in common.
type space[S any] interface {
	// moves appends all that may happen next. If fair, the first is what does
	// happen when nothing goes wrong any more and everybody gets their turn.
	// Not fair, it is over but for what may still go wrong.
	moves([]move) (all []move, fair bool)
	after(move) S
	// key appends all that decides what may happen from here on, and nothing
	// else: two states with one key are the same state.
	key([]byte) []byte
	// broken says which promise the state breaks.
	broken() error
	// settled is not 0 if all is well and nobody waits for anything. As long
	// as nothing goes wrong, it must then stay the same.
	settled() int64
	clock() time.Duration
	// forget says that nobody will look at the state again.
	forget()
	// tell says in words what a move does here; String what is the case.
	tell(move) string
	fmt.Stringer
}

// A node is a state that was seen: how it was reached, and what comes of it if
// nothing goes wrong any more.
type node struct {
	parent, fair int32 // none is -1
	by           move
	settled      int64
	pause        time.Duration // from here to fair
}

// An outcome is what an exploration has found.
type outcome struct {
	states, moves int
	depth         int           // of the deepest state: the number of moves to it
	settle        time.Duration // the longest time from any state until all is well
	err           error         // a promise is broken
	path          int           // after this many moves, and no fewer
}

func (o outcome) String() string {
	return fmt.Sprintf("%d states, %d moves between them, up to %d deep; settled within %v", o.states, o.moves, o.depth, o.settle)
}

var errTooMany = errors.New("more states than there should be")

var exploreAll = flag.Bool("explore.all", false, "explore the large worlds as well: minutes")

// exploreMax is how many states a world may have.
const exploreMax = 6_000_000

// logged explores a world in which nothing may be found.
func logged(t *testing.T, explore func() outcome) outcome {
	t.Helper()
	begin := time.Now()
	o := explore()
	t.Logf("%v; took %v", o, time.Since(begin).Round(time.Millisecond))
	if o.err != nil {
		t.Errorf("after %d moves: %v", o.path, o.err)
	}
	return o
}

// digest names a state by its key. Of 128 bits, a million states share one
// with a probability of 1 in 10^26.
type digest [2]uint64

var digestSeeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}

func digestOf(key []byte) digest {
	return digest{maphash.Bytes(digestSeeds[0], key), maphash.Bytes(digestSeeds[1], key)}
}

// explore visits every state that start leads to, limit at most, and stops at
// the first that breaks a promise: nothing shorter does. If none does, it asks
// of every state what comes of it when from there on nothing goes wrong. (That
// is a path through states that were visited, so it costs nothing to ask.)
func explore[S space[S]](start S, limit int) (o outcome) {
	nodes := []node{{parent: -1, fair: -1, settled: start.settled()}}
	todo := []S{start}
	key := start.key(nil)
	seen := map[digest]int32{digestOf(key): 0}
	var none S
	var moves []move
	var depth, last int // of the current level; its last state

	for i := 0; i < len(nodes); i++ {
		if i > last {
			depth, last = depth+1, len(nodes)-1
		}
		s := todo[i]
		todo[i] = none // to be freed
		var fair bool
		moves, fair = s.moves(moves[:0])
		for j, m := range moves {
			next := s.after(m)
			key = next.key(key[:0])
			d := digestOf(key)
			n, known := seen[d]
			if !known {
				n = int32(len(nodes))
				seen[d] = n
				nodes = append(nodes, node{parent: int32(i), fair: -1, by: m, settled: next.settled()})
				todo = append(todo, next)
			}
			if fair && j == 0 {
				nodes[i].fair, nodes[i].pause = n, next.clock()-s.clock()
			}
			o.moves++
			o.states = len(nodes)
			if err := next.broken(); err == nil && known {
				next.forget()
			} else if err != nil {
				o.path = depth + 1
				o.err = fmt.Errorf("%w\n%s", err, story(start, append(pathTo(nodes, int32(i)), m)))
				return o
			}
		}
		if o.depth = depth; o.states > limit {
			o.err = errTooMany
			return o
		}
	}
	o.settle, o.path, o.err = settle(start, nodes)
	return o
}

// settle follows each state, while nothing goes wrong any more, to where all
// is well, and makes sure that it stays so.
func settle[S space[S]](start S, nodes []node) (longest time.Duration, path int, err error) {
	breaks := func(i int32, why string) (time.Duration, int, error) {
		moves := pathTo(nodes, i)
		return 0, len(moves), fmt.Errorf("%s\n%s", why, story(start, moves))
	}
	const unknown, underWay = -1, -2
	takes := make([]time.Duration, len(nodes)) // until all is well
	leads := make([]int64, len(nodes))         // what settled says then
	for i := range takes {
		if takes[i], leads[i] = unknown, nodes[i].settled; leads[i] != 0 {
			takes[i] = 0
		}
	}
	var trail []int32
	for i := range nodes {
		trail = trail[:0]
		at := int32(i)
		for ; takes[at] == unknown; at = nodes[at].fair {
			if nodes[at].fair < 0 {
				return breaks(int32(i), "L1: from here on nothing happens any more")
			}
			takes[at] = underWay
			trail = append(trail, at)
		}
		if takes[at] == underWay {
			return breaks(int32(i), "L1: from here on it goes in circles")
		}
		for _, j := range slices.Backward(trail) {
			takes[j] = takes[nodes[j].fair] + nodes[j].pause
			leads[j] = leads[nodes[j].fair]
		}
		longest = max(longest, takes[i])
	}
	for i, n := range nodes {
		if n.settled != 0 && n.fair >= 0 && leads[n.fair] != n.settled {
			return breaks(int32(i), "L2: from here on, where all is well, it does not stay so")
		}
	}
	return longest, 0, nil
}

func pathTo(nodes []node, i int32) []move {
	var moves []move
	for ; nodes[i].parent >= 0; i = nodes[i].parent {
		moves = append(moves, nodes[i].by)
	}
	slices.Reverse(moves)
	return moves
}

// story tells how the moves lead on from start, and what then happens if
// nothing goes wrong.
func story[S space[S]](start S, moves []move) string {
	var b strings.Builder
	s, was := start, ""
	line := func(number string, m move) {
		what := s.tell(m)
		s = s.after(m)
		is := s.String()
		if is == was {
			is = ""
		} else {
			was = is
		}
		fmt.Fprintf(&b, "%4s %6v  %-52s %s\n", number, s.clock(), what, is)
	}
	for i, m := range moves {
		line(fmt.Sprint(i+1), m)
	}
	if s.broken() == nil {
		fmt.Fprintf(&b, "if nothing goes wrong from here on:\n")
		settled := s.settled()
		for range 40 {
			all, fair := s.moves(nil)
			if !fair {
				break
			}
			line("", all[0])
			if now := s.settled(); now != 0 && now != settled {
				break
			}
		}
	}
	return b.String()
}

// checkKeys explores once more and makes sure that keys hide nothing: whenever
// a state is reached that was seen before, it is asked again what may happen
// next, and whereto that leads.
func checkKeys[S space[S]](start S, limit int) error {
	type answer struct {
		next    digest
		settled int64
		path    []move
	}
	var key []byte
	ask := func(s S) (digest, int64) {
		var next []string
		moves, _ := s.moves(nil)
		for _, m := range moves {
			key = s.after(m).key(key[:0])
			next = append(next, string(key))
		}
		slices.Sort(next) // which of several that are alike made the move may differ
		return digestOf(fmt.Appendf(nil, "%q", next)), s.settled()
	}
	answers := map[digest]answer{}
	type visit struct {
		s    S
		path []move
	}
	todo := []visit{{s: start}}
	for len(todo) > 0 && len(answers) < limit {
		v := todo[0]
		todo = todo[1:]
		key = v.s.key(key[:0])
		d := digestOf(key)
		next, settled := ask(v.s)
		if a, known := answers[d]; known {
			if a.next != next || a.settled != settled {
				return fmt.Errorf("two states have the same key, and not the same moves:\n%s\nand\n%s", story(start, a.path), story(start, v.path))
			}
			continue
		}
		answers[d] = answer{next, settled, v.path}
		moves, _ := v.s.moves(nil)
		for _, m := range moves {
			todo = append(todo, visit{v.s.after(m), append(slices.Clip(v.path), m)})
		}
	}
	return nil
}

// A keyWriter appends to a key. Times count from now, so that states which
// differ only in when they are the same.
type keyWriter struct {
	b   []byte
	now time.Time
}

func (k *keyWriter) number(ns ...int64) {
	for _, n := range ns {
		if n >= -63 && n <= 63 {
			k.b = append(k.b, byte(n+64))
		} else {
			k.b = binary.BigEndian.AppendUint64(append(k.b, 255), uint64(n))
		}
	}
}

func (k *keyWriter) flags(fs ...bool) {
	for i, f := range fs {
		if i%8 == 0 {
			k.b = append(k.b, 0)
		}
		if f {
			k.b[len(k.b)-1] |= 1 << (i % 8)
		}
	}
}

func (k *keyWriter) text(s string) {
	k.b = append(append(k.b, byte(len(s))), s...)
}

// time writes a time in milliseconds from now.
func (k *keyWriter) time(t time.Time) {
	if t.IsZero() {
		k.b = append(k.b, 254)
		return
	}
	d := t.Sub(k.now)
	if d%time.Millisecond != 0 {
		panic(fmt.Sprintf("a time of %v from now: this world's clock counts milliseconds", d))
	}
	k.number(int64(d / time.Millisecond))
}

// due writes a time of which, once it has come, it doesn't matter when.
func (k *keyWriter) due(t time.Time) {
	if !t.IsZero() && t.Before(k.now) {
		t = k.now
	}
	k.time(t)
}

func TestExploreKeys(t *testing.T) {
	all := groupBudget{faults: 2, lost: 1, slow: 1, uncommitted: 1, crash: 1, freeze: 1, cut: 1, leave: 1, restart: 1}
	noSlow := all
	noSlow.slow = 0
	for name, check := range map[string]func() error{
		"group":           func() error { return checkKeys(newGroupWorld(groupPlan{workers: 2}, all), 4000) },
		"group, not slow": func() error { return checkKeys(newGroupWorld(groupPlan{workers: 2}, noSlow), 4000) },
		"group of three": func() error {
			return checkKeys(newGroupWorld(groupPlan{workers: 3, together: true, kind: Transactional}, noSlow), 4000)
		},
		"gap": func() error {
			return checkKeys(newGapWorld(2, gapBudget{transactions: 3, prepare: 1, restart: 1, fail: 1}, gapBugs{}), 4000)
		},
	} {
		t.Run(name, func(t *testing.T) {
			if err := check(); err != nil {
				t.Error(err)
			}
		})
	}
}

// An exploration that finds nothing proves nothing unless it could. Each of
// these takes away one thing that holds a promise up.
func TestExploreNotices(t *testing.T) {
	t.Parallel()
	two, three := groupPlan{workers: 2}, groupPlan{workers: 3}
	atOnce := groupPlan{workers: 2, together: true}
	replaced := groupPlan{workers: 2, together: true, vacate: 40 * time.Millisecond}
	inTransactions := groupPlan{workers: 2, together: true, kind: Transactional}
	group := func(plan groupPlan, budget groupBudget, bugs groupBugs) func() outcome {
		plan.bugs = bugs
		return func() outcome { return explore(newGroupWorld(plan, budget), exploreMax) }
	}
	gap := func(budget gapBudget, bugs gapBugs) func() outcome {
		return func() outcome { return explore(newGapWorld(2, budget, bugs), exploreMax) }
	}
	for _, tt := range []struct {
		mutant  string
		explore func() outcome
		breaks  string
	}{
		{"Step does not ask who holds an older generation", group(two, groupBudget{}, groupBugs{stepIgnoresHolds: true}), "S1"},
		{"a view always allows its worker to run", group(two, groupBudget{}, groupBugs{viewAlwaysMay: true}), "S5"},
		{"a heartbeat opens a generation", group(two, groupBudget{}, groupBugs{restless: true}), "L2"},
		{"a worker has stopped when it is asked to", group(two, groupBudget{}, groupBugs{stoppedAtOnce: true}), "S1"},
		{"the lease counts from the answer", group(atOnce, groupBudget{faults: 2, slow: 1, cut: 1}, groupBugs{leaseFromAnswer: true}), "S1"},
		{"lanes don't ask for the lease before each event", group(atOnce, groupBudget{faults: 1, freeze: 1}, groupBugs{lanesIgnoreLease: true}), "S1"},
		{"the fence does not ask for the generation", group(atOnce, groupBudget{faults: 1, freeze: 1}, groupBugs{fenceWithoutGeneration: true}), "S5"},
		{"activation does not wait for commits under way", group(inTransactions, groupBudget{faults: 1, freeze: 1}, groupBugs{activationLocksNothing: true}), "S5"},
		{"a COMMIT without an answer counts as failed", group(two, groupBudget{faults: 1, uncommitted: 1}, groupBugs{silenceIsFailure: true}), "L1"},
		{"a worker leaves a vacancy before its handlers have returned", group(replaced, groupBudget{faults: 2, leave: 1, restart: 1}, groupBugs{vacatesAtOnce: true}), "S1"},
		{"a worker leaves a vacancy though a commit may be late", group(replaced, groupBudget{faults: 3, leave: 1, restart: 1, uncommitted: 1}, groupBugs{alwaysSettled: true}), "S3"},
		{"a place that is taken stays vacant", group(replaced, groupBudget{faults: 3, leave: 1, restart: 1}, groupBugs{placeStays: true}), "S6"},
		{"the hand-over takes the highest position", group(three, groupBudget{}, groupBugs{handoffTakesHighest: true}), "S2"},
		{"the hand-over takes the lowest position and no marks", group(three, groupBudget{}, groupBugs{handoffTakesLowest: true}), "S3"},

		{"readers don't wait at gaps", gap(gapBudget{transactions: 3}, gapBugs{passesGaps: true}), "S2"},
		{"a reader does not read again after the wait", gap(gapBudget{transactions: 3}, gapBugs{oldPage: true}), "S2"},
		{"a scoped reader does not look for gaps", func() outcome {
			return explore(newGapWorld(2, gapBudget{transactions: 3}, gapBugs{passesAhead: true}).withScope(), exploreMax)
		}, "S2"},
		{"a reader looks for the highest position after the holders", gap(gapBudget{transactions: 4}, gapBugs{oldHigh: true}), "S2"},
		{"a wait forgets all holders but one", gap(gapBudget{transactions: 3}, gapBugs{forgetsHolders: true}), "S2"},
		{"a wait forgets who has another name", gap(gapBudget{transactions: 3, prepare: 1, restart: 1}, gapBugs{forgetsPrepared: true}), "S2"},
		{"prepared transactions are not listed", gap(gapBudget{transactions: 3, prepare: 1}, gapBugs{overlooksPrepared: true}), "S2"},
		{"only who has the table's lock is waited for", gap(gapBudget{transactions: 2, first: 1}, gapBugs{tableAlone: true}), "S2"},
		{"nobody compares where a statement ran", gap(gapBudget{transactions: 2, astray: 3}, gapBugs{epochIgnored: true}), "S2"},
		{"a horizon outlives its stream", gap(gapBudget{transactions: 4, truncate: 1}, gapBugs{horizonKept: true}), "S2"},
		{"what is assumed is not asked at a gap", gap(gapBudget{transactions: 3, cache: 1}, gapBugs{askedOnce: true}), "S2"},
		{"readers don't take turns", func() outcome { // from where a wait has begun: the way there is long
			return explore(newGapWorld(2, gapBudget{transactions: 4}, gapBugs{noTurns: true}).waiting(), exploreMax)
		}, "S2"},
	} {
		t.Run(tt.mutant, func(t *testing.T) {
			o := tt.explore()
			if o.err == nil || !strings.HasPrefix(o.err.Error(), tt.breaks) {
				t.Fatalf("%v; breaks %v, and not %s", o, o.err, tt.breaks)
			}
			what, _, _ := strings.Cut(o.err.Error(), "\n")
			t.Logf("after %d moves, among %d states: %s", o.path, o.states, what)
		})
	}
}
