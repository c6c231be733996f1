package sim

import (
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lib/pq"

	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The model answers as PostgreSQL does, whatever the call. No call waits for a lock here,
// since real time would pass on the server.
func TestMemoryIsPostgres(t *testing.T) {
	_, url := pgtest.Database(t)
	answers := map[string]int{
		"superseded": 0, "no transaction": 0, "bad connection": 0, "55P03": 0, "25P02": 0, "25P03": 0,
		"opened": 0, "activated": 0, "waits for": 0, "expired": 0, " marks": 0, "written": 0,
		"belongs to replica set": 0, "23503": 0, "a1": 0, "nothing missing": 0, "is missing": 0,
		"parks": 0, "not parked": 0, "unparked": 0, "forgotten": 0, "noted": 0, "asked of 0": 0, "asked of 1": 0, "aggregate a": 0, "discard": 0,
		"order rejected": 0, "located": 0, "lapsed": 0, "park, order": 0,
	}
	for seed := range uint64(10) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			d := newDuel(t, url, seed)
			for range 800 {
				answer := d.turn()
				for a := range answers {
					if strings.Contains(answer, a) {
						answers[a]++
					}
				}
			}
			d.effects()
		})
	}
	for a, n := range answers {
		if n == 0 {
			t.Errorf("nothing was answered with %q: %v", a, answers)
		}
	}
}

// A duel makes the same calls to the model and to PostgreSQL.
type duel struct {
	*testing.T
	rand     *rand.Rand
	clock    *handClock
	memory   *memory
	postgres *postgres

	both        [2]database
	connections [6][2]connection
	generation  int64
	trace       []string
}

func newDuel(t *testing.T, url string, seed uint64) *duel {
	d := &duel{T: t, rand: rand.New(rand.NewPCG(seed, 1)), clock: &handClock{time: epoch}}
	var err error
	if d.postgres, err = newPostgres(t.Context(), url, d.clock, "set", testBounds); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.postgres.close(); err != nil {
			t.Error(err)
		}
	})
	d.memory = newMemory(d.clock, memoryRules{noWait: true})
	d.both = [2]database{d.memory.as("set", testBounds), d.postgres}
	for i := range d.connections {
		d.connect(i)
	}
	return d
}

func (d *duel) connect(i int) {
	set := "set"
	if i == len(d.connections)-1 {
		set = "other" // which claims the same projections
	}
	d.connections[i] = [2]connection{d.both[0].as(set, testBounds).connect(), d.both[1].as(set, testBounds).connect()}
}

// turn makes one call and returns the answer.
func (d *duel) turn() string {
	d.Helper()
	switch n := d.rand.IntN(100); {
	case n < 10:
		by := pick(d.rand, time.Microsecond, testBounds.Idle-time.Microsecond, testBounds.Idle, testBounds.Handler, 2*testBounds.Handler)
		d.trace = append(d.trace, fmt.Sprint("advance ", by))
		d.clock.advance(by)
		return ""
	case n == 10:
		by := pick(d.rand, -time.Hour, -testBounds.Handler, testBounds.Handler, time.Hour)
		d.trace = append(d.trace, fmt.Sprint("step ", by))
		d.clock.time = d.clock.time.Add(by) // and nothing is due
		return ""
	case n == 11:
		d.trace = append(d.trace, "restart")
		d.both[0].restart()
		d.both[1].restart()
		return ""
	}
	i := d.rand.IntN(len(d.connections))
	open := d.connections[i][0].(*memoryConnection).open != nil
	d.compare(fmt.Sprint("open ", open), fmt.Sprint("open ", d.connections[i][1].(*postgresConnection).open != nil))
	what, call := d.call(open)
	d.trace = append(d.trace, fmt.Sprintf("on %d: %s", i, what))
	memory, postgres := call(d.connections[i][0]), call(d.connections[i][1])
	d.compare(memory, postgres)
	if memory == "bad connection" || memory == "closed" {
		d.connect(i)
	}
	return memory
}

func (d *duel) compare(memory, postgres string) {
	d.Helper()
	d.trace = append(d.trace, "    "+memory)
	if memory != postgres {
		d.Fatalf("%s\nand PostgreSQL\n    %s", strings.Join(d.trace[max(0, len(d.trace)-40):], "\n"), postgres)
	}
}

func (d *duel) effects() {
	d.Helper()
	effects, err := d.postgres.effects()
	d.trace = append(d.trace, "effects")
	d.compare(fmt.Sprint(d.memory.effects()), replied(fmt.Sprint(effects), err))
}

// replied returns the answer of a call.
func replied(result string, err error) string {
	switch {
	case err == nil:
		return result
	case errors.Is(err, store.ErrSuperseded):
		return "superseded"
	case errors.Is(err, store.ErrTransactionEnded):
		return "not the transaction that was begun"
	case errors.Is(err, store.ErrNotParked):
		return "not parked"
	case errors.Is(err, sql.ErrTxDone):
		return "no transaction"
	case errors.Is(err, driver.ErrBadConn):
		return "bad connection"
	case errors.Is(err, pq.ErrInFailedTransaction):
		return "25P02" // the driver's error has no number
	case store.State(err) != "":
		return store.State(err)
	}
	return err.Error()
}

// call draws a call on a connection, with or without an open transaction.
func (d *duel) call(open bool) (string, func(connection) string) {
	n := d.rand.IntN(10)
	if !open {
		n = d.rand.IntN(20)
	}
	l := d.lane()
	if chance(d.rand, 200) {
		return d.parked(l, open)
	}
	switch n {
	default:
		return d.sync()
	case 0, 1, 2, 3:
		return d.write(l, false)
	case 14:
		return d.write(l, true)
	case 4, 5:
		return "commit", func(c connection) (answer string) {
			c.commit(func(err error) { answer = replied("committed", err) })
			return answer
		}
	case 6:
		e := event{position: d.rand.Int64N(100), aggregate: "a"}
		return fmt.Sprint("effect ", e.position), func(c connection) string { return replied("", c.effect(l.Projection, e)) }
	case 7, 8:
		aggregate := pick(d.rand, "a0", "a1", "a2")
		return "insert " + aggregate, func(c connection) string {
			position, err := c.insert(aggregate)
			return replied(fmt.Sprint(position), err)
		}
	case 9:
		switch d.rand.IntN(4) {
		case 3:
			return "chain", func(c connection) string { c.chain(); return "" }
		case 0:
			return "spoil", func(c connection) string { c.spoil(); return "" }
		case 1:
			return "violate", func(c connection) string { c.violate(); return "" }
		}
		return "close", func(c connection) string { c.close(); return "closed" }
	case 10:
		return "begin", func(c connection) (answer string) {
			c.begin(func(err error) { answer = replied("begun", err) })
			return answer
		}
	case 11:
		return fmt.Sprint("find ", l), func(c connection) (answer string) {
			c.find(l, func(f protocol.Found, err error) { answer = replied(fmt.Sprintf("%+v", f), err) })
			return answer
		}
	case 12:
		s, after, limit := pick[scope](d.rand, "", "order", "order refund", "/moved", "order/made"), d.rand.Int64N(10), d.rand.IntN(10)
		through := after + d.rand.Int64N(20)
		return fmt.Sprintf("page of %d in %q from %d to %d", limit, s, after, through), func(c connection) string {
			page, err := c.page(here(c), s, after, through, limit)
			if s != "" || err != nil {
				return replied(fmt.Sprint(page), err)
			}
			keys, err := c.keys(here(c), after, limit)
			if err != nil {
				return replied("", err)
			}
			rows, err := c.rows(here(c), slices.Compact(slices.Sorted(slices.Values([]int64{after + 1, through}))))
			return replied(fmt.Sprint(page, keys, rows), err)
		}
	case 15:
		after := d.rand.Int64N(30)
		return fmt.Sprint("ahead of ", after), func(c connection) string {
			last, missing, err := c.ahead(here(c), after)
			if missing == 0 {
				return replied(fmt.Sprintf("last %d, nothing missing", last), err)
			}
			return replied(fmt.Sprintf("last %d, %d is missing", last, missing), err)
		}
	case 13:
		return "reader", func(c connection) string {
			high, err := c.high(here(c))
			if err != nil {
				return replied("", err)
			}
			a, err := c.ask()
			holders := a.Holders
			for _, h := range holders {
				if h.Backend == 0 {
					return "a prepared transaction"
				}
			}
			return replied(fmt.Sprintf("high %d, %d holders", high, len(holders)), err)
		}
	}
}

// lane draws a lane that exists, or a similar one.
func (d *duel) lane() store.Lane {
	l := store.Lane{Projection: pick(d.rand, "p", "p", "p", "q", "q", "other")}
	l.Assignment = protocol.Assignment{Generation: d.generation, Partition: d.rand.IntN(3), Total: 3}
	if r := d.memory.checkpoint(nil, l); r != nil {
		l.Assignment.Generation, l.Assignment.Total = r.committed.generation, max(1, r.committed.total)
	}
	l.Assignment.Generation -= int64(pick(d.rand, 0, 0, 0, 0, 1))
	return l
}

// write draws a commit from where the checkpoint is, or from nearby.
func (d *duel) write(l store.Lane, saves bool) (string, func(connection) string) {
	var from protocol.Checkpoint
	if r := d.memory.checkpoint(nil, l); r != nil {
		from = r.committed.Checkpoint
	}
	to := from.Advance(from.Position + d.rand.Int64N(20))
	from.Position += int64(pick(d.rand, 0, 0, 0, 0, -1, 1))
	return fmt.Sprintf("write (saves: %t) %s from %s to %s", saves, l, from, to), func(c connection) (answer string) {
		move := c.write
		if saves {
			move = c.save
		}
		move(l, from, to, func(err error) { answer = replied("written", err) })
		return answer
	}
}

// parked draws a call that is about parked events, on a few positions.
func (d *duel) parked(l store.Lane, open bool) (string, func(connection) string) {
	position, attempts := 1+d.rand.Int64N(4), 1+d.rand.IntN(2)
	n := d.rand.IntN(9)
	if open {
		n = 0
	}
	switch n {
	case 0, 1:
		return fmt.Sprintf("unpark %d of %s", position, l), func(c connection) (answer string) {
			c.unpark(l, position, func(err error) { answer = replied("unparked", err) })
			return answer
		}
	case 2, 3, 4:
		var from protocol.Checkpoint
		if r := d.memory.checkpoint(nil, l); r != nil {
			from = r.committed.Checkpoint
		}
		to := from.Advance(from.Position + d.rand.Int64N(20))
		from.Position += int64(pick(d.rand, 0, 0, 0, -1))
		rows := []protocol.Parked{{Position: position, Slot: l.Assignment.Partition, Aggregate: "aggregate a", Attempts: attempts}, {Position: position + 1, Aggregate: "aggregate b"}}
		return fmt.Sprintf("park %d and the next, of %s from %s to %s", position, l, from, to), func(c connection) (answer string) {
			c.park(l, from, to, rows, func(err error) { answer = replied("parks", err) })
			return answer
		}
	case 5:
		return fmt.Sprintf("forget %d of %s", position, l), func(c connection) (answer string) {
			c.forget(l, position, func(err error) { answer = replied("forgotten", err) })
			return answer
		}
	case 6:
		return fmt.Sprintf("note %d of %s, attempt %d", position, l, attempts), func(c connection) (answer string) {
			c.note(l, position, attempts, func(err error) { answer = replied("noted", err) })
			return answer
		}
	case 7:
		request := pick(d.rand, protocol.Retry, protocol.Discard)
		return fmt.Sprintf("%s %d of %s", request, position, l), func(c connection) (answer string) {
			c.request(l.Projection, position, request, func(n int, err error) { answer = replied(fmt.Sprint("asked of ", n), err) })
			return answer
		}
	}
	number := 1 + d.rand.Int64N(1+d.memory.numbers)
	switch d.rand.IntN(4) {
	case 0:
		position += d.rand.Int64N(200)
		return fmt.Sprintf("order to park %d of %s", position, l.Projection), func(c connection) (answer string) {
			c.orderPark(l.Projection, position, func(n int64, err error) {
				if errors.Is(err, store.ErrRejected) {
					err = store.ErrRejected
				}
				answer = replied(fmt.Sprint("order ", n), err)
			})
			return answer
		}
	case 1:
		return fmt.Sprintf("locate order %d of %s", number, l), func(c connection) (answer string) {
			c.locate(l, number, l.Assignment.Partition, func(err error) { answer = replied("located", err) })
			return answer
		}
	case 2:
		return fmt.Sprintf("lapse order %d of %s", number, l), func(c connection) (answer string) {
			c.lapse(l, number, "no", func(err error) { answer = replied("lapsed", err) })
			return answer
		}
	}
	return fmt.Sprint("look ", l), func(c connection) (answer string) {
		c.parked(l, func(rows []protocol.Parked, err error) {
			var b strings.Builder
			for _, r := range rows {
				fmt.Fprintf(&b, "%d in slot %d of %s, attempt %d, since %s, %s, order %d\n", r.Position, r.Slot, r.Aggregate, r.Attempts, r.Since.Sub(epoch), r.Request, r.Order)
			}
			answer = replied(b.String(), err)
		})
		return answer
	}
}

// sync draws a request of one of a few workers.
func (d *duel) sync() (string, func(connection) string) {
	r := protocol.Request{
		Worker: pick[protocol.WorkerID](d.rand, "a", "a~2", "b", "c"), Lease: testBounds.Handler + 700,
		Stopped: d.generation - int64(d.rand.IntN(3)),
	}
	if chance(d.rand, 300) {
		r.Presence = protocol.Presence{Key: int32(r.Worker[0]), Number: 1 + d.rand.Int32N(4)}
	}
	if chance(d.rand, 200) {
		id := pick[protocol.WorkerID](d.rand, "a", "a~2", "b", "c")
		r.Watch.Absent = []protocol.Absence{{Worker: id, Presence: protocol.Presence{Key: int32(id[0]), Number: 1 + d.rand.Int32N(4)}}}
	}
	if chance(d.rand, 300) {
		r.Watch.Seen, r.Watch.For = d.clock.now(), time.Hour
	}
	switch d.rand.IntN(8) {
	case 0, 1, 2:
		r.Heartbeat = true
	case 3, 4:
		r.Join, r.MaxPartitions, r.JoinWindow = true, pick(d.rand, 0, 0, 2), pick(d.rand, 0, 1700, testBounds.Idle)
		r.Wants = pick(d.rand, 0, 1, 1, 3)
	case 5:
		r.Leave = chance(d.rand, 500)
	}
	return fmt.Sprintf("sync %+v", r), func(c connection) (answer string) {
		c.sync(r, []string{"q", "p"}, nil, nil, false, func(result store.Result, err error) {
			d.generation = max(d.generation, result.Group.Generation)
			answer = replied(spelled(result), err)
		})
		return answer
	}
}

// spelled returns all fields of a result, with times as moments.
func spelled(r store.Result) string {
	at := func(t time.Time) string {
		if t.IsZero() {
			return "never"
		}
		return t.Sub(epoch).String()
	}
	var b strings.Builder
	v, g := r.View, r.Group
	fmt.Fprintf(&b, "%s: member %t generation %d partition %s/%d holds %d step %s\n", at(v.Now), v.Member, v.Generation, protocol.FormatPartitions(v.Partitions), v.Total, v.Holds, at(v.StepAt))
	fmt.Fprintf(&b, "    %s, floor %d, limit %d, window %s, for %q\n", g, g.Floor, g.MaxPartitions, g.JoinWindow, g.Reason)
	for _, m := range g.Members {
		fmt.Fprintf(&b, "    %s joined %s lease %s to %s partition %s of %d holds %d, present as %v\n", m.ID, at(m.Joined), m.Lease, at(m.LeaseEnd), protocol.FormatPartitions(m.Partitions), m.Wants, m.Holds, m.Presence)
	}
	fmt.Fprintf(&b, "    %s, step %s", r.Decision, at(r.Decision.StepAt))
	return b.String()
}
