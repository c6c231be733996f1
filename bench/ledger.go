package main

import (
	"context"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// A ledger is the handler that does nothing but check: the versions of each
// aggregate must come as 1, 2, 3 …, whoever handles them. It costs some tens of
// nanoseconds, for every contender alike.
type ledger struct {
	through int64 // events beyond that position don't count
	want    int64
	page    int64
	last    []atomic.Int64
	count   atomic.Int64

	first, lastPage atomic.Int64  // when, since epoch
	done            chan struct{} // closed: as many events as wanted were handled

	once  sync.Once
	wrong chan struct{} // closed: fault is set
	fault error
}

// newLedger wants the given number of events up to a position. page is the size
// of the largest batch that a contender of the trial reads.
func newLedger(through, want, page int64) *ledger {
	return &ledger{
		through: through, want: want, page: page, last: make([]atomic.Int64, aggregateMax),
		done: make(chan struct{}), wrong: make(chan struct{}),
	}
}

// openLedger wants no particular number.
func openLedger() *ledger { return newLedger(math.MaxInt64, -1, 0) }

// aggregateMax is above the number of every aggregate.
const aggregateMax = 20_000

func (l *ledger) note(e *orchestrator.Event) {
	if e.GlobalPosition > l.through {
		return
	}
	a, err := strconv.Atoi(strings.TrimPrefix(e.AggregateID, "a"))
	if err != nil || a >= len(l.last) || !l.last[a].CompareAndSwap(e.AggregateVersion-1, e.AggregateVersion) {
		l.once.Do(func() {
			l.fault = fmt.Errorf("event lost, repeated or out of order: version %d of aggregate %s at position %d does not follow its predecessor",
				e.AggregateVersion, e.AggregateID, e.GlobalPosition)
			close(l.wrong)
		})
	}
	n := l.count.Add(1)
	if n == 1 {
		l.first.Store(int64(time.Since(epoch)))
	}
	if n == l.want-l.page+1 {
		l.lastPage.Store(int64(time.Since(epoch)))
	}
	if n == l.want {
		close(l.done)
	}
}

// rate is in events per second and for each ledger, from the first event of the
// first page to the first of the last page that any of them got: between the
// two, want-page events were read and handled by everybody, whether it reads
// pages of 2000 or of 100.
func rate(ledgers []*ledger) float64 {
	first, last := int64(math.MaxInt64), int64(0)
	for _, l := range ledgers {
		first, last = min(first, l.first.Load()), max(last, l.lastPage.Load())
	}
	return float64(ledgers[0].want-ledgers[0].page) / time.Duration(last-first).Seconds()
}

var epoch = time.Now()

// rateOf runs what feeds the ledgers to its end, and returns their rate.
func rateOf(ctx context.Context, ledgers []*ledger, run func(context.Context) error) (float64, error) {
	if err := run(ctx); err != nil {
		return 0, err
	}
	for _, l := range ledgers {
		if err := l.complete(); err != nil {
			return 0, err
		}
	}
	return rate(ledgers), nil
}

// complete says what is wrong or missing.
func (l *ledger) complete() error {
	if err := l.check(); err != nil {
		return err
	}
	select {
	case <-l.done:
		return nil
	default:
		return fmt.Errorf("events lost: %d handled, want %d", l.count.Load(), l.want)
	}
}

// wait waits for the last event, or for what keeps it from coming.
func (l *ledger) wait(ctx context.Context, ended <-chan struct{}) error {
	select {
	case <-l.done:
	case <-l.wrong:
	case <-ended:
	case <-ctx.Done():
	}
	return l.complete()
}

// check says what is wrong so far.
func (l *ledger) check() error {
	select {
	case <-l.wrong:
		return l.fault
	default:
		return nil
	}
}
