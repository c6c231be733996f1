package protocol

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// aggregates answers a read with events of these aggregates, from a position on.
func aggregates(first int64, ids ...string) LaneAnswer {
	var a LaneAnswer
	for i, id := range ids {
		a.Page = append(a.Page, Key{Position: first + int64(i), Aggregate: id, Slot: SlotOf(id)})
	}
	a.More = len(ids) == 4
	return a
}

// parkedRows answers a look. Rows are "12 a", "12 a retry".
func parkedRows(rows ...string) LaneAnswer {
	var a LaneAnswer
	for _, row := range rows {
		var p Parked
		var request string
		fmt.Sscan(row, &p.Position, &p.Aggregate, &request)
		p.Slot, p.Attempts, p.Request = SlotOf(p.Aggregate), 3, ParkRequest(request)
		a.Parked = append(a.Parked, p)
	}
	return a
}

// Each row is the life of a lane that parks after the second failure, and no more
// than three events. It is the only partition, in generation 5.
func TestLaneParks(t *testing.T) {
	var (
		ok       LaneAnswer
		asked    = Signals{Asked: true}
		canceled = Signals{Canceled: true}
		unproven = Signals{Unproven: true}
		fault    = failing(Fault)
		dbFailed = "pause 20ms: the database failed"
		begin    = func(rows ...string) []turn {
			return []turn{{answer: ok, want: "load"}, {answer: found(5, 10), want: "load parked"}, {answer: parkedRows(rows...), want: "read 4 after 10"}}
		}
		// twice has the handler of a plain lane fail at the first event that is
		// pending, up to the second failure.
		twice = func(position, cursor int64) []turn {
			return []turn{
				{answer: fault, want: fmt.Sprintf("pause 100ms: the handler failed at %d, attempt 1", position)},
				{answer: ok, want: fmt.Sprintf("read 4 after %d", cursor)},
				{answer: aggregates(0), want: "handle 0+1"},
			}
		}
	)
	none := found(5, 10)
	none.Found.NoneParked = true
	for _, tt := range []struct {
		name   string
		config LaneConfig
		turns  []turn
	}{
		{"what found the checkpoint found nothing parked: no look, until there is", LaneConfig{}, slices.Concat([]turn{
			{answer: ok, want: "load"},
			{answer: none, want: "read 4 after 10"},
			{answer: aggregates(11, "a", "a"), want: "handle 0+1"},
		}, twice(11, 12), []turn{
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 2"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "park 1, 11 to 12"},
			{answer: ok, want: "load parked", later: time.Second},
		})},
		{"parked with the later events of its aggregate, and others go on", LaneConfig{}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a", "a", "b"), want: "handle 0+1"},
		}, twice(11, 13), []turn{
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 2"},
			{answer: ok, want: "read 4 after 13"},
			{answer: aggregates(14, "a"), want: "park 1, 11 to 12"},
			{answer: ok, want: "read 4 after 14"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "save 12 to 13"},
			{answer: ok, want: "read 4 after 14"},
			{answer: ok, want: "park 1, 13 to 14"},
		})},
		{"a batch ends before a parked aggregate, and a run of those is parked at once", LaneConfig{Kind: Batched}, slices.Concat(begin("5 a"), []turn{
			{answer: aggregates(11, "b", "c", "a", "a"), want: "open"},
			{answer: ok, want: "handle 0+2"},
			{answer: ok, want: "write 10 to 12"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 14"},
			{answer: ok, want: "park 2, 12 to 14"},
		})},
		{"a plain batch ends before a parked aggregate, and retries without a transaction", LaneConfig{Kind: PlainBatched}, slices.Concat(begin("5 a"), []turn{
			{answer: aggregates(11, "b", "c", "a"), want: "handle 0+2"},
			{answer: ok, want: "save 10 to 12"},
			{answer: ok, want: "read 4 after 13"},
			{answer: ok, want: "park 1, 12 to 13"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: ok, want: "drop 5"},
		})},
		{"what the handler calls permanent is parked at once", LaneConfig{}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: failing(Permanent), want: "park 1, 10 to 11 at 11, attempt 1"},
		})},
		{"what passes by itself is no reason to park", LaneConfig{}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: failing(Passing), want: "pause 100ms: the handler failed at 11, attempt 1"},
			{answer: ok, want: "read 4 after 11"},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "pause 200ms: the handler failed at 11, attempt 2"},
			{answer: ok, want: "read 4 after 11"},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 3"},
		})},
		{"transactional: only the event that stands alone is to blame", LaneConfig{Kind: Transactional, Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a", "b"), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: fault, want: "rollback, pause 100ms: the handler failed at 12, attempt 1"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "write 10 to 11"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "rollback, park 1, 11 to 12 at 12, attempt 2"},
		})},
		{"what precedes it is committed, and then it is parked", LaneConfig{Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a", "b"), want: "handle 0+1"},
			{answer: ok, want: "handle 1+1"},
			{answer: fault, want: "save 10 to 11"},
			{answer: ok, want: "park 1, 11 to 12 at 12, attempt 1"},
			{answer: ok, want: "read 4 after 12"},
		})},
		{"a lost reply to a park that has happened", LaneConfig{Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 1"},
			{answer: failing(Passing), want: dbFailed},
			{answer: ok, want: "find"},
			{answer: found(5, 11), want: "read 4 after 11"},
			{answer: aggregates(12, "a"), want: "park 1, 11 to 12"},
		})},
		{"a lost reply to one that has not: it is not handled again", LaneConfig{Kind: Transactional, Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "open"},
			{answer: ok, want: "handle 0+1"},
			{answer: fault, want: "rollback, park 1, 10 to 11 at 11, attempt 1"},
			{answer: failing(Passing), want: dbFailed},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "park 1, 10 to 11 at 11, attempt 1"},
			{answer: failing(Fenced), want: "find"}, // it has arrived after all
			{answer: found(5, 11), want: "read 4 after 11"},
		})},
		{"a park under a generation that is over", LaneConfig{Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 1"},
			{answer: failing(Fenced), want: "find"},
			{answer: found(6, 10), want: "end: fenced"},
		})},
		{"asked to stop: a park that has happened", LaneConfig{Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 1", signals: asked},
			{answer: ok, want: "end: requested", signals: asked},
		})},
		{"the row stands elsewhere: what is parked is read again", LaneConfig{Attempts: 1}, slices.Concat(begin(), []turn{
			{answer: aggregates(11, "a"), want: "handle 0+1"},
			{answer: fault, want: "park 1, 10 to 11 at 11, attempt 1"},
			{answer: failing(Fenced), want: "find"},
			{answer: found(5, 7), want: "load parked"},
			{answer: parkedRows("9 b"), want: "read 4 after 7"},
			{answer: aggregates(8, "a", "b"), want: "handle 0+1"},
		})},
		{"rows of a policy that is no more still count", LaneConfig{OnFailure: RetryForever}, slices.Concat(begin("5 a"), []turn{
			{answer: aggregates(11, "b", "a"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "park 1, 11 to 12"},
		})},

		{"full: nothing moves, and now and then it looks whether there is room", LaneConfig{}, slices.Concat(begin("5 a", "6 b", "7 c"), []turn{
			{answer: aggregates(11, "a"), want: "pause 1s: too many parked at 11, attempt 0"},
			{answer: ok, want: "load parked", later: time.Second},
			{answer: parkedRows("5 a", "6 b"), want: "read 4 after 11"},
			{answer: ok, want: "park 1, 10 to 11"},
		})},
		{"full: the event at fault is tried again", LaneConfig{Attempts: 1}, slices.Concat(begin("5 a", "6 b", "7 c"), []turn{
			{answer: aggregates(11, "d"), want: "handle 0+1"},
			{answer: fault, want: "pause 100ms: too many parked at 11, attempt 1"},
			{answer: ok, want: "read 4 after 11", later: 100 * time.Millisecond},
			{answer: ok, want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
		})},
		{"a run is parked as far as there is room", LaneConfig{}, slices.Concat(begin("5 a", "6 b"), []turn{
			{answer: aggregates(11, "a", "b"), want: "park 1, 10 to 11"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "pause 1s: too many parked at 12, attempt 0"},
		})},

		{"requests are looked for at rest and between batches, no more often than that", LaneConfig{}, slices.Concat(begin("5 a"), []turn{
			{answer: aggregates(11, "b"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "read 4 after 11"},
			{answer: aggregates(12, "b"), want: "handle 0+1"},
			{answer: ok, want: "save 11 to 12", later: time.Second},
			{answer: ok, want: "load parked"},
			{answer: parkedRows("5 a"), want: "read 4 after 12"},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load parked", later: time.Second},
		})},
		{"plain: retried in order, and then its aggregate goes on", LaneConfig{}, slices.Concat([]turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry", "6 b", "7 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: ok, want: "drop 5"},
			{answer: ok, want: "fetch 7"},
			{answer: aggregates(7, "a"), want: "handle parked 7"},
			{answer: ok, want: "drop 7"},
			{answer: ok, want: "read 4 after 10"},
			{answer: aggregates(11, "a", "b"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "read 4 after 12"},
			{answer: ok, want: "park 1, 11 to 12"},
		})},
		{"transactional: the row goes in the handler's transaction", LaneConfig{Kind: Transactional}, slices.Concat([]turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: ok, want: "commit"},
			{answer: ok, want: "read 4 after 10"},
		})},
		{"only the first of an aggregate is retried, and only if asked for", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a", "7 a retry", "8 b retry"), want: "fetch 8"},
			{answer: aggregates(8, "b"), want: "handle parked 8"},
			{answer: ok, want: "drop 8"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"among many retries it looks whether they are still asked for", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry", "6 b retry", "7 c retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: ok, want: "drop 5", later: time.Second},
			{answer: ok, want: "load parked"},
			{answer: parkedRows("6 b discard", "7 c"), want: "drop 6"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"of many, parked ones that take long leave new events their turn", LaneConfig{LoadAll: 1}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a discard", "6 b discard", "7 c discard", "8 d discard"), want: "drop 5"},
			{answer: ok, want: "drop 6", later: parkedTurn / 2},
			{answer: ok, want: "read 4 after 10", later: parkedTurn / 2},
			{answer: aggregates(11, "x"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "drop 7"},
			{answer: ok, want: "drop 8", later: parkedTurn}, // not many any more
			{answer: ok, want: "read 4 after 11"},
			{answer: ok, want: "pause 1s: nothing new"},
		}},
		{"of few, what is asked for comes first, however long it takes", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a discard", "6 b discard", "7 c discard"), want: "drop 5"},
			{answer: ok, want: "drop 6", later: parkedTurn},
			{answer: ok, want: "drop 7", later: parkedTurn},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"of many, it reads the requests alone, and does not forget the rest", LaneConfig{LoadAll: 2}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a", "6 b", "7 c"), want: "read 4 after 10"},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load requests", later: time.Second},
			{answer: parkedRows("6 b discard"), want: "drop 6"},
			{answer: ok, want: "read 4 after 10"},
			{answer: aggregates(11, "a", "c", "b"), want: "park 1, 10 to 11"},
		}},
		{"of many, a request that is gone is gone; and now and then it reads all", LaneConfig{LoadAll: 2}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a", "6 a retry", "7 c"), want: "read 4 after 10"},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load requests", later: time.Second},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: ok, want: "drop 5"},
			{answer: ok, want: "read 4 after 10"},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load parked", later: loadAllEvery},
		}},
		{"looks take no more than a tenth of the time", LaneConfig{LoadAll: 2}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a", "6 b", "7 c"), want: "read 4 after 10"},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load requests", later: time.Second},
			{answer: ok, want: "read 4 after 10", later: time.Second}, // it took that long
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "read 4 after 10", later: 9 * time.Second},
			{answer: ok, want: "pause 1s: nothing new"},
			{answer: ok, want: "load requests", later: time.Second},
		}},
		{"the first is discarded: the next waits for its own request", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a discard", "7 a", "9 a discard"), want: "drop 5"},
			{answer: ok, want: "drop 9"},
			{answer: ok, want: "read 4 after 10"},
			{answer: aggregates(11, "a"), want: "park 1, 10 to 11"},
		}},
		{"a retry that fails is noted, and asked for no more", LaneConfig{Kind: Batched}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry", "7 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: fault, want: "rollback, note 5, attempt 4"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"what a retry wrote is refused at COMMIT", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: ok, want: "commit"},
			{answer: fault, want: "rollback, note 5, attempt 4"},
		}},
		{"the event is gone", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(6, "a"), want: "note 5, attempt 4"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"an unclear COMMIT of a retry: the rows say", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: ok, want: "commit"},
			{answer: failing(Passing), want: "rollback, " + dbFailed},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"}, // it has not happened
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: ok, want: "commit"},
			{answer: failing(Passing), want: "rollback, pause 40ms: the database failed"},
			{answer: ok, want: "find"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows(), want: "read 4 after 10"}, // it has
		}},
		{"fenced in a retry", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: failing(Fenced), want: "rollback, find"},
			{answer: found(6, 10), want: "end: fenced"},
		}},
		{"plain: a drop that is not heard of is sent again, and the event not handled again", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: ok, want: "drop 5"},
			{answer: failing(Passing), want: dbFailed},
			{answer: ok, want: "drop 5"},
			{answer: failing(Fenced), want: "end: fenced"},
		}},
		{"a note that is not heard of is sent again", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: fault, want: "note 5, attempt 4"},
			{answer: failing(Passing), want: dbFailed},
			{answer: ok, want: "note 5, attempt 4"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"no retry begins without a proof, and none when asked to stop", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "prove", signals: unproven},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: failing(NotBegun), want: "rollback, prove"},
			{answer: ok, want: "open"},
			{answer: ok, want: "rollback, end: requested", signals: asked},
		}},
		{"a retry that is done when asked to stop is committed", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry", "6 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5", signals: asked},
			{answer: ok, want: "commit", signals: asked},
			{answer: ok, want: "end: requested", signals: asked},
		}},
		{"cancelled in a retry: nothing is committed", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "rollback, end: requested", signals: canceled},
		}},
		{"a retry that is suspended is made when there is a proof", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: failing(Interrupted), want: "rollback, prove", signals: unproven},
			{answer: ok, want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: failing(Interrupted), want: "rollback, prove"},
		}},
		{"a retry whose row is there, and can't be taken", LaneConfig{Kind: Transactional}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: failing(Fenced), want: "rollback, find"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "open"},
			{answer: ok, want: "handle parked 5"},
			{answer: ok, want: "unpark 5"},
			{answer: failing(Fenced), want: "rollback, note 5, attempt 4"},
		}},
		{"a retry whose connection is lost comes again, and has not failed", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: failing(Cut), want: "pause 100ms: the handler's connection was lost at 5"},
			{answer: ok, want: "read 4 after 10"},
		}},
		{"a retry that passes by itself comes again", LaneConfig{}, []turn{
			{answer: ok, want: "load"},
			{answer: found(5, 10), want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
			{answer: aggregates(5, "a"), want: "handle parked 5"},
			{answer: failing(Passing), want: "pause 100ms: the handler failed at 5, attempt 3"},
			{answer: ok, want: "read 4 after 10"},
			{answer: aggregates(11, "b"), want: "handle 0+1"},
			{answer: ok, want: "save 10 to 11"},
			{answer: ok, want: "load parked"},
			{answer: parkedRows("5 a retry"), want: "fetch 5"},
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.config
			c.Batch, c.Poll, c.Lease, c.MaxParked = 4, time.Second, 6*time.Second, 3
			c.Retry = Backoff{Min: 100 * time.Millisecond, Max: time.Second}
			if c.Attempts == 0 {
				c.Attempts = 2
			}
			if c.OnFailure == RetryForever && !strings.Contains(tt.name, "no more") {
				c.OnFailure = ParkEvents
			}
			l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 1}, c)
			now := testStart
			var log strings.Builder
			for i, turn := range tt.turns {
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

// What is written into the rows of a park.
func TestLaneParking(t *testing.T) {
	l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 1}, LaneConfig{Batch: 4, Poll: time.Minute, OnFailure: ParkEvents, Attempts: 1, MaxParked: 9})
	for _, a := range []LaneAnswer{{}, found(5, 10), parkedRows("5 b"), aggregates(11, "a\x00\xff", "b", "b"), failing(Fault)} {
		l.Next(testStart, Signals{}, a)
	}
	slot := SlotOf("a\x00\xff")
	want := []Parked{{Position: 11, Slot: slot, Aggregate: "a\uFFFD\uFFFD", Attempts: 1}}
	if diff := cmp.Diff(want, l.Parking()); diff != "" {
		t.Errorf("the event at fault (-want +got):\n%s", diff)
	}
	l.Next(testStart, Signals{}, LaneAnswer{})
	l.Next(testStart, Signals{}, LaneAnswer{})
	want = []Parked{{Position: 12, Slot: SlotOf("b"), Aggregate: "b"}, {Position: 13, Slot: SlotOf("b"), Aggregate: "b"}}
	if diff := cmp.Diff(want, l.Parking()); diff != "" {
		t.Errorf("those behind another (-want +got):\n%s", diff)
	}
	l.Next(testStart.Add(time.Second), Signals{}, LaneAnswer{})
	// The row that was read says nothing of when.
	if n, oldest := l.Parked(); n != 4 || !oldest.Equal(testStart) {
		t.Errorf("%d are parked, since %s", n, oldest)
	}
}

func TestParkedSetDue(t *testing.T) {
	for _, tt := range []struct {
		rows string
		want int64
	}{
		{"", 0},
		{"5 a", 0},
		{"5 a, 6 a retry", 0},
		{"5 a retry, 6 a retry", 5},
		{"5 a, 6 b retry", 6},
		{"5 a, 6 a discard", 6},
		{"5 a, 6 a retry, 7 b discard", 7},
	} {
		var rows []string
		if tt.rows != "" {
			rows = strings.Split(tt.rows, ", ")
		}
		l := NewParkedSet(parkedRows(rows...).Parked)
		if got, _ := l.Due(); got.Position != tt.want {
			t.Errorf("of %s, %d is due, want %d", tt.rows, got.Position, tt.want)
		}
	}
}

// A retry that can't go on, for a reason that passes by itself or never does, holds
// up neither the other aggregates nor who takes the request back.
func TestRetryThatPassesHoldsNobodyUp(t *testing.T) {
	for _, tt := range []struct {
		name  string
		fails LaneDo
		kind  LaneKind
	}{
		{"the event can't be read", LaneFetch, Plain},
		{"a plain handler fails for a passing reason", LaneHandle, Plain},
		{"a transactional one", LaneHandle, Transactional},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 1}, LaneConfig{
				Kind: tt.kind, Batch: 4, Poll: time.Second, Lease: 6 * time.Second, OnFailure: ParkEvents, Attempts: 2, MaxParked: 3,
				Retry: Backoff{Min: 100 * time.Millisecond, Max: time.Second},
			})
			now, answer, fails := testStart, LaneAnswer{}, 0
			looked, handled := 0, false
			for range 200 {
				a := l.Next(now, Signals{}, answer)
				answer = LaneAnswer{}
				switch a.Do {
				case LaneLoad, LaneFind:
					answer = found(5, 10)
				case LaneLoadParked:
					looked++
					answer = parkedRows("5 a retry")
				case LaneFetch:
					answer = aggregates(5, "a")
				case LaneRead:
					if a.After == 10 {
						answer = aggregates(11, "b")
					}
				case LanePause:
					now = now.Add(a.For)
				case LaneHandle:
					handled = handled || !a.Parked
				}
				if a.Do == tt.fails && (a.Parked || a.Do != LaneHandle) {
					fails++
					answer = failing(Passing)
				}
			}
			if looked < 2 {
				t.Errorf("after %d failures in %s it has not looked whether the request still stands", fails, now.Sub(testStart))
			}
			if !handled {
				t.Errorf("after %d failures in %s no event of another aggregate was handled", fails, now.Sub(testStart))
			}
		})
	}
}

// One load requests that was slow, or that failed first, must not make the later ones
// rare: those that have taken no time since say how long one takes.
func TestLooksAreFrequentAgainAfterASlowOne(t *testing.T) {
	for _, fails := range []bool{false, true} {
		l := NewLane(Assignment{Generation: 5, Partition: 0, Total: 1}, LaneConfig{
			Kind: Plain, Batch: 4, Poll: time.Second, Lease: 30 * time.Second, OnFailure: ParkEvents, Attempts: 2, MaxParked: 3, LoadAll: 1,
			Retry: Backoff{Min: 100 * time.Millisecond, Max: time.Second},
		})
		now, answer := testStart, LaneAnswer{}
		slow, looked := false, []time.Time{}
		for now.Before(testStart.Add(20 * time.Minute)) {
			a := l.Next(now, Signals{}, answer)
			answer = LaneAnswer{}
			switch a.Do {
			case LaneLoad:
				answer = found(5, 10)
			case LaneLoadParked:
				switch {
				case a.Requests && !slow:
					slow, now = true, now.Add(20*time.Second)
					if fails {
						answer = failing(Passing)
					}
				case a.Requests:
				default:
					answer = parkedRows("5 a", "6 b")
				}
				looked = append(looked, now)
			case LanePause:
				now = now.Add(a.For)
			}
		}
		for i, at := range looked[1:] {
			if gap := at.Sub(looked[i]); at.After(testStart.Add(5*time.Minute)) && gap > 2*time.Second {
				t.Errorf("a look that fails: %t; %s after the beginning, the next look comes %s after the one before", fails, at.Sub(testStart), gap)
				break
			}
		}
	}
}

// An aggregate's row is found by its id in ASCII as well: so it stands in a database
// whose encoding has not all of its characters.
func TestParkedSetKnowsAnIDInASCII(t *testing.T) {
	for _, id := range []string{"plain", "\u201cquoted\u201d", "\xff", "a\x00b", "\U0001F600"} {
		l := NewParkedSet([]Parked{{Position: 1, Aggregate: ASCII(Storable(id))}})
		if !l.Has(id) {
			t.Errorf("%q is parked as %q, and not known", id, l.rows[0].Aggregate)
		}
		l = NewParkedSet([]Parked{{Position: 1, Aggregate: Storable(id)}})
		if !l.Has(id) {
			t.Errorf("%q is parked as %q, and not known", id, l.rows[0].Aggregate)
		}
	}
	if got := ASCII("a \u201cb\u201d\n"); got != "a \\u201cb\\u201d\n" {
		t.Errorf("%q", got)
	}
}

// Each that is due has its turn, also where the first ones are put off for ever, or
// fail; within an aggregate the first comes first.
func TestParkedSetTakesTurns(t *testing.T) {
	l := NewParkedSet(parkedRows("1 a retry", "2 a retry", "3 b retry", "4 c discard").Parked)
	var got []int64
	for range 5 {
		r, due := l.Due()
		if !due {
			t.Fatalf("nothing is due after %v", got)
		}
		got = append(got, r.Position)
		l.PutOff()
	}
	if diff := cmp.Diff([]int64{1, 3, 4, 1, 3}, got); diff != "" {
		t.Errorf("what was due (-want +got):\n%s", diff)
	}
	l.Noted(1, 4)
	l.Remove(4)
	l.Remove(3)
	if r, due := l.Due(); due { // 2 waits for 1, which nobody asks for
		t.Errorf("%d is due", r.Position)
	}
	l.Ask([]Parked{{Position: 1, Request: Discard}})
	if r, due := l.Due(); !due || r.Position != 1 {
		t.Errorf("%d is due, %t", r.Position, due)
	}
	l.Remove(1)
	if r, due := l.Due(); due {
		t.Errorf("%d is due, and nobody has asked for it since", r.Position)
	}
}
