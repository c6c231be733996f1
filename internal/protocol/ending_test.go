package protocol

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// An endWorld is an events table in which transactions take positions in order, and end in
// any.
type endWorld struct {
	rand    *rand.Rand
	last    int64
	begun   int
	open    map[string]int64 // by name: the position that it has taken
	visible []int64
}

// acts lets something happen, or nothing.
func (w *endWorld) acts() {
	switch w.rand.IntN(4) {
	case 0:
		w.last++
		w.begun++
		w.open[fmt.Sprint("2/", w.begun)] = w.last
	case 1, 2:
		names := w.names()
		if len(names) == 0 {
			return
		}
		name := names[w.rand.IntN(len(names))]
		if w.rand.IntN(3) > 0 {
			w.visible = append(w.visible, w.open[name])
			slices.Sort(w.visible)
		}
		delete(w.open, name)
	}
}

func (w *endWorld) names() (names []string) {
	for name := range w.open {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (w *endWorld) high() int64 {
	if len(w.visible) == 0 {
		return 0
	}
	return w.visible[len(w.visible)-1]
}

// final returns the position up to which everything is final, as nobody in the world can
// tell, and no more than the highest.
func (w *endWorld) final() int64 {
	final := w.high()
	for _, position := range w.open {
		final = min(final, position-1)
	}
	return final
}

func (w *endWorld) answer(a ReadAction) (answer ReadAnswer) {
	answer.Epoch = "e"
	switch a.Do {
	case ReadHolders, ReadAsk:
		answer.High = w.high()
		for _, name := range w.names() {
			answer.Holders = append(answer.Holders, Holder{Transaction: name, Backend: 1})
		}
	case ReadHigh:
		answer.High = w.high()
	case ReadAhead:
		answer.Last = a.After
		for _, p := range w.visible {
			if p <= a.After || answer.Last-a.After >= 3 {
				continue
			}
			if answer.Missing == 0 && p > answer.Last+1 {
				answer.Missing = answer.Last + 1
			}
			answer.Last = p
		}
	}
	return answer
}

// find carries an ending out, while others act between any two of its steps. It gives up
// where it has waited for long.
func (w *endWorld) find(known *End, patient bool) (position, from int64, ok bool) {
	e := NewEnding(known, patient)
	from = w.final()
	action := e.Next(testStart, ReadAnswer{})
	for steps := 0; action.Do != ReadDone; steps++ {
		if action.Do == ReadRefuse || steps > 1000 {
			return 0, from, false
		}
		w.acts()
		answer := w.answer(action)
		w.acts()
		action = e.Next(testStart, answer)
	}
	return action.Passed, from, true
}

// What an Ending finds is no higher than what is final in the end, and no lower than what
// was final when it began, or the one that it goes by.
func TestEnding(t *testing.T) {
	quick, below := 0, 0
	for seed := range uint64(20_000) {
		w := &endWorld{rand: rand.New(rand.NewPCG(seed, 0)), open: map[string]int64{}}
		for range w.rand.IntN(40) {
			w.acts()
		}
		var known End
		at, from, ok := w.find(&known, true)
		if final := w.final(); !ok || at < from || at > final {
			t.Fatalf("seed %d: a patient one finds %d (%t), and what was final has gone from %d to %d", seed, at, ok, from, final)
		}
		for range w.rand.IntN(10) {
			w.acts()
		}
		holders := len(w.open)
		again, began, ok := w.find(&known, false)
		if final := w.final(); !ok || again < from || again > final {
			t.Fatalf("seed %d: one that must not wait finds %d (%t), and what was final has gone from %d to %d", seed, again, ok, from, final)
		}
		if holders > 0 {
			quick++
		}
		if again < began {
			below++ // a transaction was rolled back in between
		}
	}
	if quick == 0 || below == 0 {
		t.Errorf("of %d that found somebody writing, %d went by what was final a moment before", quick, below)
	}
}

// One that must not wait does not: with an End that was proven lately, it takes four steps.
func TestEndingDoesNotWait(t *testing.T) {
	w := &endWorld{rand: rand.New(rand.NewPCG(1, 1)), open: map[string]int64{}, visible: []int64{1, 2, 7}, last: 7}
	var known End
	if at, _, ok := w.find2(t, &known, true, testStart); !ok || at != 7 {
		t.Fatalf("nobody writes: the end is %d (%t)", at, ok)
	}
	w.open["3/1"], w.visible = 9, append(w.visible, 8, 10, 11)
	if at, pauses, ok := w.find2(t, &known, false, testStart.Add(endMax)); !ok || at != 8 || pauses > 0 {
		t.Errorf("9 is open, and 7 was the end: found %d (%t) after %d pauses", at, ok, pauses)
	}
	if _, pauses, ok := w.find2(t, &known, false, testStart.Add(endMax+1)); ok || pauses == 0 {
		t.Errorf("the known end is too old: it does not wait")
	}
}

// find2 carries an ending out while nobody acts, and counts the pauses.
func (w *endWorld) find2(t *testing.T, known *End, patient bool, now time.Time) (position int64, pauses int, ok bool) {
	t.Helper()
	e := NewEnding(known, patient)
	action := e.Next(now, ReadAnswer{})
	for action.Do != ReadDone {
		if action.Pause {
			pauses++
		}
		if action.Do == ReadRefuse || pauses > 3 {
			return 0, pauses, false
		}
		action = e.Next(now, w.answer(action))
	}
	return action.Passed, pauses, true
}

// What was found elsewhere counts for nothing.
func TestEndingElsewhere(t *testing.T) {
	known := End{epoch: "e", position: 300, proven: testStart}
	e := NewEnding(&known, false)
	e.Next(testStart, ReadAnswer{})
	if a := e.Next(testStart, ReadAnswer{Epoch: "f", High: 500}); a.Do != ReadHigh || a.Epoch != "f" || known != (End{}) {
		t.Fatalf("another epoch: %+v, known %+v", a, known)
	}
	if a := e.Next(testStart, ReadAnswer{Stale: true}); a.Do != ReadAsk {
		t.Fatalf("a statement that found itself elsewhere: %+v", a)
	}
	e.Next(testStart, ReadAnswer{Epoch: "f", High: 2})
	e.Next(testStart, ReadAnswer{High: 2})
	if a := e.Next(testStart, ReadAnswer{Epoch: "g", High: 2, Holders: nil}); a.Do != ReadAsk {
		t.Fatalf("the list of holders is of another epoch: %+v", a)
	}
	if a := e.Next(testStart, ReadAnswer{Broken: "a standby"}); a.Do != ReadRefuse || a.Why != "a standby" {
		t.Fatalf("what is assumed does not hold: %+v", a)
	}
}
