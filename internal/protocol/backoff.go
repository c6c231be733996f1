package protocol

import "time"

// How long to wait before something is tried again: one table for everything.

// A Backoff is an exponential delay with jitter.
type Backoff struct{ Min, Max time.Duration }

// Delay returns the time to wait after the given number of failures, from 1:
// Min, doubled with each further failure up to Max, less up to half of it by
// jitter, a random number in [0,1).
func (b Backoff) Delay(failures int, jitter float64) time.Duration {
	d := b.Min
	for i := 1; i < failures && d < b.Max; i++ {
		d *= 2
	}
	d = min(d, b.Max)
	return d - time.Duration(jitter*float64(d)/2)
}

// A Retried is something that is tried again, without a limit, when it has failed.
type Retried int

const (
	RetryStart    Retried = iota // the checks before a worker joins
	RetryRequest                 // a worker's request to its replica set; see Session.backoff
	RetryLane                    // a lane's statement
	RetryPresence                // to open the worker's own session
	RetryListen                  // to open a connection for notifications
	RetryOrder                   // an operator's order, if rows are locked
	RetryAwait                   // the check whether something has happened that a caller waits for
)

// Backoff returns how long to wait between two tries. What holds up handlers is tried again
// soon, and at least once a second, since a worker's lease may be a few seconds; what
// nothing depends on, ever less often.
func (r Retried) Backoff() Backoff {
	const ms = time.Millisecond
	return [...]Backoff{
		RetryStart:    {50 * ms, time.Second},
		RetryRequest:  {40 * ms, retryMax},
		RetryLane:     {20 * ms, retryMax},
		RetryPresence: {5 * ms, 250 * ms},
		RetryListen:   {100 * ms, 10 * time.Second},
		RetryOrder:    {20 * ms, time.Second},
		RetryAwait:    {2 * ms, 100 * ms},
	}[r]
}
