package protocol

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// A turn of a lane: what it is told, and what it must do then.
type turn struct {
	answer LaneAnswer
	want   string
	// Besides: signals that hold from this answer on, and time that has
	// passed before it.
	signals Signals
	later   time.Duration
}

// page answers a read with events of partition 0 of 2, at even positions.
func evens(positions ...int64) LaneAnswer {
	var a LaneAnswer
	for _, p := range positions {
		a.Page = append(a.Page, Key{Position: p, Slot: int(p % 2)})
	}
	a.More = len(positions) == 4
	return a
}

func found(generation, position int64) LaneAnswer {
	return LaneAnswer{Found: Found{Generation: generation, Checkpoint: Checkpoint{Position: position}, Exists: true}}
}

func failing(f Failure) LaneAnswer { return LaneAnswer{Failure: f} }

// undone is a COMMIT at 12 that has not happened, for the n-th time, two seconds and
// more after the one before.
func undone(n int, then string) []turn {
	var ok LaneAnswer
	pause := Backoff{20 * time.Millisecond, time.Second}.Delay(n, 0)
	turns := []turn{
		{answer: ok, want: "handle 0+1", later: 2 * time.Second},
		{answer: ok, want: "write 10 to 12"},
		{answer: ok, want: "commit"},
		{answer: failing(Passing), want: fmt.Sprintf("rollback, pause %s: the database failed", pause)},
		{answer: ok, want: "find", later: pause},
		{answer: found(5, 10), want: then},
	}
	if strings.HasPrefix(then, "read") {
		turns = append(turns, turn{answer: evens(), want: "open"})
	}
	return turns
}

// Each row is the life of a lane, or a part of it, in turns. All are partition
// 0 of 2 in generation 5, with batches of 4.
func TestLane(t *testing.T) {
	var (
		unproven = Signals{Unproven: true}
		asked    = Signals{Asked: true}
		canceled = Signals{Canceled: true}
		over     = Signals{LeaseOver: true}
		ok       LaneAnswer
		begin    = []turn{{answer: ok, want: "load"}, {answer: found(5, 10), want: "load parked"}, {answer: ok, want: "read 4 after 10"}}
		pause    = "pause 20ms: the database failed"
	)
	for _, tt := range []struct {
		name   string
		config LaneConfig
		skip   bool // begin is not done for it
		turns  []turn
	}{
		{name: "plain: handle, commit, go on", turns: []turn{
			{answer: evens(11, 12, 13), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 13"},
			{answer: ok, want: "read 4 after 13"},
			{answer: evens(), want: "pause 1s: nothing new"},
			{answer: ok, want: "read 4 after 13"},
			{answer: evens(), want: "pause 1s: nothing new"},
		}},
		{name: "pages are read until there is a batch", turns: []turn{
			{answer: evens(11, 12, 13, 14), want: "read 4 after 14"},
			{answer: evens(15, 16, 17, 18), want: "handle 0+1"},
		}},
		{name: "a page ends before what the reader has passed: there may be more", turns: []turn{
			{answer: LaneAnswer{Page: evens(12).Page, Passed: 90}, want: "handle 0+1"},
			{answer: ok, want: "save 10 to 90"},
			{answer: ok, want: "read 4 after 90"},
			{answer: LaneAnswer{Passed: 100, More: true}, want: "read 4 after 100"},
			{answer: LaneAnswer{Passed: 100}, want: "pause 1s: nothing new"},
		}},
		{name: "another generation's row is not ours", skip: true, turns: []turn{
			{answer: ok, want: "load"},
			{answer: found(6, 10), want: "end: fenced"},
		}},
		{name: "no row at all", skip: true, turns: []turn{
			{answer: ok, want: "load"},
			{answer: ok, want: "end: fenced"},
		}},
		{name: "transactional: one transaction for the batch", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14, 16), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: ok, want: "handle 2+1"},
			{answer: ok, want: "write 10 to 16"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 16"},
		}},
		{name: "transactional: a batch that takes long is cut", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14, 16), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1", later: time.Second},
			{answer: ok, want: "write 10 to 15", later: time.Second},
		}},
		{name: "batched: all at once", config: LaneConfig{Kind: Batched}, turns: []turn{
			{answer: evens(12, 14, 16), want: "open"},
			{answer: ok, want: "handle 0+3"},
			{answer: ok, want: "write 10 to 16"},
		}},
		{name: "plain batch: all at once, and no transaction", config: LaneConfig{Kind: PlainBatched}, turns: []turn{
			{answer: evens(12, 14, 16), want: "handle 0+3"},
			{answer: ok, want: "save 10 to 16"},
			{answer: ok, want: "read 4 after 16"},
		}},
		{name: "plain batch: halves until the event at fault stands alone", config: LaneConfig{Kind: PlainBatched, OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12, 14, 16), want: "handle 0+3"},
			{answer: failing(Fault), want: "pause 100ms: the handler failed at 12, attempt 0"},
			{answer: ok, want: "read 4 after 16"},
			{answer: evens(), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 13"},
			{answer: ok, want: "read 4 after 16"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Fault), want: "end: handler failed at 14, attempt 1"},
		}},
		{name: "plain batch: interrupted, it is handed over again as a whole", config: LaneConfig{Kind: PlainBatched, OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12, 14), want: "handle 0+2"},
			{answer: failing(Interrupted), want: "prove", signals: unproven},
			{answer: ok, want: "handle 0+2"},
			{answer: ok, want: "save 10 to 14"},
		}},
		{name: "plain batch: a lost reply to what has happened is not handled again", config: LaneConfig{Kind: PlainBatched}, turns: []turn{
			{answer: evens(12, 14), want: "handle 0+2"},
			{answer: ok, want: "save 10 to 14"},
			{answer: failing(Passing), want: pause},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "save 10 to 14"},
		}},
		{name: "drain: what is done of the batch is committed", turns: []turn{
			{answer: evens(12, 14, 16), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 13", signals: asked},
			{answer: ok, want: "end: requested", signals: asked},
		}},
		{name: "drain before the first event of a transaction", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "rollback, end: requested", signals: asked},
		}},
		{name: "cancelled: nothing more is committed", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "end: requested", signals: canceled},
		}},
		{name: "cancelled between write and commit", config: LaneConfig{Kind: Batched}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: ok, want: "write 10 to 14"},
			{answer: ok, want: "rollback, end: requested", signals: canceled},
		}},
		{name: "cancelled before the first event of a transaction", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "rollback, end: requested", signals: canceled},
		}},
		{name: "a write that was given up is never committed", config: LaneConfig{Kind: Batched}, turns: []turn{
			{answer: evens(12), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 12"},
			{answer: failing(Passing), want: "rollback, " + pause},
			{answer: ok, want: "find"},
		}},
		{name: "lease over: no event is begun, and the session must know", turns: []turn{
			{answer: evens(12, 14), want: "end: fenced", signals: over},
		}},
		{name: "lease over in the middle of a batch", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 13", signals: over},
		}},
		{name: "lease over while a batch's transaction was opened", config: LaneConfig{Kind: Batched}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "rollback, end: fenced", signals: over},
		}},
		{name: "no event is begun without a proof, and no transaction waits for one", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14), want: "prove", signals: unproven},
			{answer: ok, want: "prove", signals: unproven}, // of another partition, or too late
			{answer: ok, want: "open"},
			{answer: ok, want: "rollback, prove", signals: unproven}, // it ran out in between
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(NotBegun), want: "rollback, prove"}, // likewise
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 13", signals: unproven}, // what is done needs none
			{answer: ok, want: "commit", signals: unproven},
			{answer: ok, want: "read 4 after 14", signals: unproven},
		}},
		{name: "asked to stop while there is no proof", config: LaneConfig{Kind: Batched}, turns: []turn{
			{answer: evens(12, 14), want: "prove", signals: unproven},
			{answer: ok, want: "end: requested", signals: Signals{Asked: true, Unproven: true}},
		}},
		{name: "plain: without a proof in the middle of a batch", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "prove", signals: unproven},
			{answer: ok, want: "save 10 to 13", signals: asked}, // what is done needs none
		}},
		{name: "suspended: the event is handled again when there is a proof, and has not failed", config: LaneConfig{OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: failing(Interrupted), want: "prove", signals: unproven},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Fault), want: "end: handler failed at 12, attempt 1"},
		}},
		{name: "suspended in the middle of a batch: what is done is committed", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Interrupted), want: "save 10 to 13"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "handle 0+1"},
		}},
		{name: "suspended in the middle of a transaction: the batch begins again in another", config: LaneConfig{Kind: Transactional, OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Interrupted), want: "rollback, prove", signals: unproven},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: ok, want: "write 10 to 14"},
			{answer: failing(Interrupted), want: "rollback, prove"}, // the handler did not say so
			{answer: ok, want: "end: requested", signals: asked},
		}},
		{name: "the fence lets nothing through, and nobody else has moved the row: the handler has", config: LaneConfig{Kind: Transactional, OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 12"},
			{answer: failing(Fenced), want: "rollback, find"},
			{answer: found(5, 10), want: "end: handler failed at 12, attempt 1"},
		}},
		{name: "what is to pass by itself counts when it has not for long enough", config: LaneConfig{OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 100ms: the handler failed at 12, attempt 1"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 200ms: the handler failed at 12, attempt 2", later: 7 * time.Second}, // over a lease, and not often
			{answer: ok, want: "load parked"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 400ms: the handler failed at 12, attempt 3"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "end: handler failed at 12, attempt 4"},
		}},
		{name: "a connection that was lost is no attempt", config: LaneConfig{Kind: Transactional, OnFailure: StopOnFailure, Attempts: 2}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Cut), want: "rollback, pause 100ms: the handler's connection was lost at 14"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"}, // what precedes the event is committed first, in case it is at fault
			{answer: ok, want: "write 10 to 13"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Cut), want: "rollback, pause 100ms: the handler's connection was lost at 14"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Fault), want: "rollback, pause 100ms: the handler failed at 14, attempt 1"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Cut), want: "rollback, pause 200ms: the handler's connection was lost at 14"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Fault), want: "rollback, end: handler failed at 14, attempt 2"},
		}},
		{name: "a connection that is lost at one event for too long is its fault", config: LaneConfig{OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: failing(Cut), want: "pause 100ms: the handler's connection was lost at 12"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Cut), want: "pause 200ms: the handler's connection was lost at 12", later: 7 * time.Second}, // over a lease, and not often
			{answer: ok, want: "load parked"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Cut), want: "pause 400ms: the handler's connection was lost at 12"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Cut), want: "end: handler failed at 12, attempt 1"},
		}},
		{name: "a batch whose connection was lost is tried in parts", config: LaneConfig{Kind: Batched, OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: failing(Cut), want: "rollback, pause 100ms: the handler's connection was lost at 12"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 13"},
		}},
		{name: "a permanent failure of a plain handler stops at once", config: LaneConfig{OnFailure: StopOnFailure, Attempts: 5}, turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Permanent), want: "save 10 to 13"},
			{answer: ok, want: "end: handler failed at 14, attempt 1"},
		}},
		{name: "a permanent failure within a transaction: what precedes it is committed, and it is called once more, alone", config: LaneConfig{Kind: Transactional, OnFailure: StopOnFailure, Attempts: 5}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Permanent), want: "rollback, pause 0s: the handler failed at 14, attempt 1"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 13"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Permanent), want: "rollback, end: handler failed at 14, attempt 2"},
		}},
		{name: "a permanent failure of a batch: halves, at once, until the event stands alone", config: LaneConfig{Kind: Batched, OnFailure: StopOnFailure, Attempts: 5}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: failing(Permanent), want: "rollback, pause 0s: the handler failed at 12, attempt 0"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Permanent), want: "rollback, end: handler failed at 12, attempt 1"},
		}},
		{name: "a permanent failure under a policy that only tries again: as rarely as that does", config: LaneConfig{OnFailure: RetryForever, Attempts: 5}, turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: failing(Permanent), want: "pause 1s: the handler failed at 12, attempt 1"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Fault), want: "pause 200ms: the handler failed at 12, attempt 2"},
		}},
		{name: "what is to pass by itself, often, and not for long", config: LaneConfig{OnFailure: StopOnFailure, Attempts: 1}, turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 100ms: the handler failed at 12, attempt 1"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 200ms: the handler failed at 12, attempt 2"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 400ms: the handler failed at 12, attempt 3"},
			{answer: ok, want: "read 4 after 12"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 800ms: the handler failed at 12, attempt 4"},
		}},
		{name: "a COMMIT that is undone again and again", config: LaneConfig{Kind: Transactional, OnFailure: StopOnFailure, Attempts: 1}, turns: slices.Concat(
			[]turn{{answer: evens(12), want: "open"}},
			undone(1, "read 4 after 12"), undone(2, "read 4 after 12"), undone(3, "read 4 after 12"), undone(4, "end: handler failed at 12, attempt 1"),
		)},
		{name: "fenced", turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 12"},
			{answer: failing(Fenced), want: "find"},
			{answer: found(6, 12), want: "end: fenced"},
		}},
		{name: "plain: a lost reply to what has happened", turns: []turn{
			{answer: evens(12), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 12"},
			{answer: failing(Passing), want: pause},
			{answer: ok, want: "find"},
			{answer: failing(Passing), want: "pause 40ms: the database failed"},
			{answer: ok, want: "find"},
			{answer: found(5, 12), want: "read 4 after 12"},
		}},
		{name: "plain: a lost reply to what has not; the events are not handled again", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: ok, want: "save 10 to 14"},
			{answer: failing(Passing), want: pause},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "save 10 to 14"},
			{answer: failing(Fenced), want: "find"}, // it has arrived after all
			{answer: found(5, 14), want: "read 4 after 14"},
		}},
		{name: "transactional: an undone COMMIT; a shorter batch is handled again", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: ok, want: "write 10 to 14"},
			{answer: ok, want: "commit"},
			{answer: failing(Passing), want: "rollback, " + pause},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 13"},
		}},
		{name: "the row stands elsewhere: go on from there", turns: []turn{
			{answer: evens(12, 14), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: ok, want: "save 10 to 14"},
			{answer: failing(Fenced), want: "find"},
			{answer: found(5, 12), want: "load parked"},
			{answer: ok, want: "read 4 after 12"},
		}},
		{name: "plain: the handler fails at the second event", turns: []turn{
			{answer: evens(12, 14, 16), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Fault), want: "save 10 to 13"},
			{answer: ok, want: "pause 100ms: the handler failed at 14, attempt 1"},
			{answer: ok, want: "read 4 after 16"},
			{answer: evens(), want: "handle 0+1"},
			{answer: failing(Fault), want: "pause 200ms: the handler failed at 14, attempt 2"},
		}},
		{name: "transactional: the handler fails at the second event", config: LaneConfig{Kind: Transactional}, turns: []turn{
			{answer: evens(12, 14, 16), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: failing(Fault), want: "rollback, pause 100ms: the handler failed at 14, attempt 1"},
			{answer: ok, want: "read 4 after 16"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 13"}, // what precedes the event, alone
		}},
		{name: "what a handler wrote is refused at COMMIT", config: LaneConfig{Kind: Batched, OnFailure: StopOnFailure}, turns: []turn{
			{answer: evens(12), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 12"},
			{answer: ok, want: "commit"},
			{answer: failing(Fault), want: "rollback, end: handler failed at 12, attempt 1"},
		}},
		{name: "StopOnFailure goes by what failed for certain", config: LaneConfig{Kind: Batched, OnFailure: StopOnFailure}, turns: []turn{
			{answer: evens(12, 14), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: failing(Fault), want: "rollback, pause 100ms: the handler failed at 12, attempt 0"},
			{answer: ok, want: "read 4 after 14"},
			{answer: evens(), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: failing(Passing), want: "rollback, pause 100ms: the handler failed at 12, attempt 1"},
		}},
		{name: "what can't be read ends the worker", turns: []turn{
			{answer: failing(Permanent), want: "end: permanent failure"},
		}},
		{name: "a page that is not what was asked for ends the worker", turns: []turn{
			{answer: evens(9), want: "end: permanent failure"},
		}},
		{name: "a read that fails is tried again", turns: []turn{
			{answer: failing(Passing), want: pause},
			{answer: ok, want: "read 4 after 10"},
			{answer: failing(Passing), want: "pause 40ms: the database failed"},
			{answer: ok, want: "end: requested", signals: asked},
		}},
		{name: "what is all for others is not the end", turns: []turn{
			{answer: evens(11), want: "read 4 after 11"},
			{answer: LaneAnswer{Passed: 20}, want: "read 4 after 20"},
			{answer: evens(21, 22), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 22"},
			{answer: ok, want: "read 4 after 22"},
			{answer: LaneAnswer{Passed: 22}, want: "pause 1s: nothing new"},
		}},
		{name: "skipped events are committed after a while, and not for each page", turns: []turn{
			{answer: evens(11, 13), want: "read 4 after 13"},
			{answer: evens(), want: "pause 1s: nothing new"},
			{answer: ok, want: "read 4 after 13", later: 2 * time.Second},
			{answer: evens(), want: "save 10 to 13"},
			{answer: ok, want: "pause 1s: nothing new"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.config.Batch, tt.config.Poll = 4, time.Second
			tt.config.Lease = 6 * time.Second
			tt.config.Retry = Backoff{Min: 100 * time.Millisecond, Max: time.Second}
			l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 2}, tt.config)
			now := testStart
			turns := tt.turns
			if !tt.skip {
				turns = append(append([]turn{}, begin...), turns...)
			}
			var log strings.Builder
			for i, turn := range turns {
				now = now.Add(turn.later)
				got := l.Next(now, turn.signals, turn.answer)
				fmt.Fprintf(&log, "%2d %s\n", i, got)
				if got.String() != turn.want {
					t.Fatalf("want %q, got the last of\n%s", turn.want, log.String())
				}
			}
		})
	}
}

// What the session hears of a lane that has ended.
func TestLaneEndTells(t *testing.T) {
	for end, want := range map[LaneEndWhy]Input{EndRequested: nil, EndFenced: Refused{5}, EndPermanent: Shutdown{}, EndHandlerFailed: Shutdown{}} {
		if got := end.Tells(5); got != want {
			t.Errorf("%s tells %v, want %v", end, got, want)
		}
	}
}

// The error of a bad page says what is wrong with it.
func TestLaneNamesABadPage(t *testing.T) {
	l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 2}, LaneConfig{Batch: 4})
	l.Next(testStart, Signals{}, LaneAnswer{})
	l.Next(testStart, Signals{}, found(5, 10))
	l.Next(testStart, Signals{}, LaneAnswer{})
	end := l.Next(testStart, Signals{}, evens(12, 12))
	if end.Err == nil || !strings.Contains(end.Err.Error(), "repeats position 12") {
		t.Errorf("the error is %v", errors.Unwrap(end.Err))
	}
}

// calledLane is a lane whose handler was called at a time.
func calledLane(kind LaneKind, at time.Time) *Lane {
	l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 2}, LaneConfig{Kind: kind, Batch: 1, Poll: time.Second, Lease: 10 * time.Second})
	l.Next(at, Signals{}, LaneAnswer{})
	f := found(5, 10)
	f.Found.NoneParked = true
	l.Next(at, Signals{}, f)
	if a := l.Next(at, Signals{}, evens(12)); a.Do == LaneOpen {
		l.Next(at, Signals{}, LaneAnswer{})
	}
	return l
}

// What the lane knows of an error beside its facts: whether its handler was cancelled,
// and for how long it has had its transaction.
//
//  1. the handler does not touch its transaction for a lease, and the server ends it;
//  2. its next statement, or the lane's own, finds that the connection is gone;
//  3. taken for a connection that was lost, that passes, and the handler is called
//     again: for ever, if it always takes so long.
func TestLaneJudges(t *testing.T) {
	start := time.Unix(1000, 0)
	mine := Terms{End: start.Add(time.Hour)}
	lost, fails := Facts{Failed: true, Lost: true}, Facts{Failed: true}
	for _, c := range []struct {
		why       string
		kind      LaneKind
		after     time.Duration
		facts     Facts
		cancelled bool
		terms     Terms
		want      Failure
		idled     bool
	}{
		{"lost soon: the network's", Transactional, 9 * time.Second, lost, false, mine, Cut, false},
		{"lost after a lease: the handler's", Transactional, 10 * time.Second, lost, false, mine, Fault, true},
		{"any network, after a lease", Batched, 10 * time.Second, Facts{Failed: true, Network: true}, false, mine, Fault, true},
		{"the server says so", Transactional, time.Second, Facts{Failed: true, State: "25P03"}, false, mine, Fault, true},
		{"without a transaction", Plain, time.Hour / 2, lost, false, mine, Cut, false},
		{"its context was cancelled", Transactional, 10 * time.Second, lost, true, mine, Interrupted, true},
		{"or is about to be: the lease is over", Plain, time.Second, fails, false, Terms{End: start}, Interrupted, false},
		{"or the proof is", Plain, time.Second, fails, false, Terms{End: mine.End, Bound: true, GoOn: start}, Interrupted, false},
		{"a proof that nobody goes by", Plain, time.Second, fails, false, Terms{End: mine.End, GoOn: start}, Fault, false},
		{"nothing has failed, after a lease", Transactional, time.Minute, Facts{}, false, mine, NoFailure, false},
	} {
		l := calledLane(c.kind, start)
		facts, got := l.Judge(start.Add(c.after), c.facts, c.cancelled, c.terms)
		if got != c.want || facts.Idled != c.idled {
			t.Errorf("%s: %v, idled %t; want %v, %t", c.why, got, facts.Idled, c.want, c.idled)
		}
	}
}

// A lane counts how often in a row its handler was interrupted, or could not begin; one
// that fails by itself neither adds to that nor ends it.
func TestLaneSaysThatItIsThwarted(t *testing.T) {
	now := time.Unix(1000, 0)
	l := calledLane(Plain, now)
	for i, c := range []struct {
		failure Failure
		want    int
	}{{NotBegun, 1}, {Interrupted, 2}, {Fault, 0}, {Interrupted, 3}, {NoFailure, 0}, {NotBegun, 1}} {
		a := l.Next(now, Signals{}, failing(c.failure))
		if a.Thwarted != c.want {
			t.Errorf("answer %d: thwarted %d, want %d", i+1, a.Thwarted, c.want)
		}
		for try := 0; a.Do != LaneHandle; try++ {
			if try == 10 {
				t.Fatalf("answer %d: the handler is not called again: %v", i+1, a)
			}
			answer := LaneAnswer{}
			if a.Do == LaneRead {
				answer = evens(a.After + 2)
			}
			if a = l.Next(now, Signals{}, answer); a.Thwarted != 0 {
				t.Errorf("answer %d: told again", i+1)
			}
		}
	}
}

// What is handed to a handler says how often the event has failed: what the library or
// the network has interrupted is no attempt.
func TestLaneCountsAttempts(t *testing.T) {
	now := time.Unix(1000, 0)
	l := calledLane(Plain, now)
	for i, c := range []struct {
		failure  Failure
		attempts int // before the next call
	}{{Fault, 1}, {Interrupted, 1}, {NotBegun, 1}, {Cut, 1}, {Passing, 2}, {Fault, 3}, {NoFailure, 0}, {Cut, 0}, {Fault, 1}} {
		a := l.Next(now, Signals{}, failing(c.failure))
		for try := 0; a.Do != LaneHandle; try++ {
			if try == 10 {
				t.Fatalf("answer %d: the handler is not called again: %v", i+1, a)
			}
			answer := LaneAnswer{}
			if a.Do == LaneRead {
				answer = evens(a.After + 2)
			}
			a = l.Next(now, Signals{}, answer)
		}
		if a.Attempts != c.attempts {
			t.Errorf("answer %d: the event has failed %d times, want %d", i+1, a.Attempts, c.attempts)
		}
	}
}
