package protocol

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Parked events as data: what a lane knows of its dead-letter queue. lane_parked.go has what it
// does with them.

// A FailurePolicy is what a lane does with an event whose handler has failed
// often enough.
type FailurePolicy int

const (
	// RetryForever tries again without a limit.
	RetryForever FailurePolicy = iota
	// StopOnFailure ends the worker.
	StopOnFailure
	// ParkEvents puts the event into the dead-letter queue, and the later ones of its
	// aggregate behind it.
	ParkEvents
)

// A ParkRequest is what a lane is asked to do with a parked event.
type ParkRequest string

const (
	Unasked ParkRequest = ""
	Retry   ParkRequest = "retry"
	Discard ParkRequest = "discard"
	// ToPark is an order to park the event that a lane is at. It is not a row of a
	// parked event yet, but is loaded with those.
	ToPark ParkRequest = "park"
)

// NoSlot is the slot of an event that is ordered to be parked, before a lane has read it.
const NoSlot = -1

// A Parked event is one that a lane has passed without handling it, or, with ToPark, is
// ordered to pass.
type Parked struct {
	Position  int64
	Order     int64 // the number of the order to park it
	Slot      int
	Aggregate string // as Storable has it
	Attempts  int    // 0: it waits behind another
	Since     time.Time
	Request   ParkRequest
}

// Storable returns an aggregate's id as PostgreSQL accepts it in a text. Two different ids
// may become one: then the later events of both wait.
func Storable(id string) string {
	return strings.ToValidUTF8(strings.ReplaceAll(id, "\x00", "\uFFFD"), "\uFFFD")
}

// ASCII returns a text in which every character beyond ASCII is written as in a Go
// string, "\u201c", for databases whose encoding has no such character. A text of
// ASCII stays as it is.
func ASCII(text string) string {
	if !strings.ContainsFunc(text, beyondASCII) {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		if beyondASCII(r) {
			b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

func beyondASCII(r rune) bool { return r > '\x7e' }

// parkedKey is an aggregate's key in a ParkedSet: a row may have its id as it is or
// in ASCII.
func parkedKey(aggregate string) string { return ASCII(Storable(aggregate)) }

// A ParkedSet is what a lane has parked.
type ParkedSet struct {
	rows  []Parked           // by position
	of    map[string][]int64 // the positions of an aggregate
	asked int                // how many have a request
	next  int                // the row at which Due continues
	idle  bool               // nothing is due, and nothing has changed since
}

// NewParkedSet returns the set of these rows.
func NewParkedSet(rows []Parked) ParkedSet {
	l := ParkedSet{of: map[string][]int64{}}
	l.Add(rows...)
	return l
}

// Len returns the number of parked events.
func (l *ParkedSet) Len() int { return len(l.rows) }

// Oldest returns since when the oldest one is parked, and
// the zero time if there is none.
func (l *ParkedSet) Oldest() (since time.Time) {
	for i := range l.rows {
		if at := l.rows[i].Since; since.IsZero() || at.Before(since) {
			since = at
		}
	}
	return since
}

// Has reports whether events of the aggregate are parked.
func (l *ParkedSet) Has(aggregate string) bool {
	return len(l.rows) > 0 && len(l.of[parkedKey(aggregate)]) > 0
}

// Add adds rows.
func (l *ParkedSet) Add(rows ...Parked) {
	l.rows, l.next, l.idle = append(l.rows, rows...), 0, false
	// Rows of slots that were ahead at a hand-over may be beyond the new ones.
	slices.SortFunc(l.rows, func(a, b Parked) int { return cmp.Compare(a.Position, b.Position) })
	for _, r := range rows {
		key := parkedKey(r.Aggregate)
		of := append(l.of[key], r.Position)
		if n := len(of); n > 1 && of[n-2] > r.Position {
			slices.Sort(of)
		}
		l.of[key] = of
		if r.Request != Unasked {
			l.asked++
		}
	}
}

// Remove removes a row.
func (l *ParkedSet) Remove(position int64) {
	i, found := l.find(position)
	if !found {
		return
	}
	r := l.rows[i]
	if i == 0 { // the common case: they are handled in order, however many there are
		l.rows = l.rows[1:]
	} else {
		l.rows = slices.Delete(l.rows, i, i+1)
	}
	if l.next > i {
		l.next--
	}
	l.idle = false
	key := parkedKey(r.Aggregate)
	of := l.of[key]
	switch at, _ := slices.BinarySearch(of, position); {
	case len(of) == 1:
		delete(l.of, key)
	case at == 0:
		l.of[key] = of[1:]
	default:
		l.of[key] = slices.Delete(of, at, at+1)
	}
	if r.Request != Unasked {
		l.asked--
	}
}

// Noted takes in that a row has failed so many times, and has no request any more.
func (l *ParkedSet) Noted(position int64, attempts int) {
	if i, found := l.find(position); found {
		if r := &l.rows[i]; r.Request != Unasked {
			l.asked--
			r.Attempts, r.Request = attempts, Unasked
		}
	}
}

// Ask takes in all requests that there are now. Only the lane adds and removes its
// rows; others write nothing but requests into them.
func (l *ParkedSet) Ask(requested []Parked) {
	l.asked, l.idle = 0, false
	for i := range l.rows {
		l.rows[i].Request = Unasked
	}
	for _, r := range requested {
		if i, found := l.find(r.Position); found && r.Request != Unasked {
			l.rows[i].Request, l.rows[i].Attempts = r.Request, r.Attempts
			l.asked++
		}
	}
}

func (l *ParkedSet) find(position int64) (int, bool) {
	return slices.BinarySearchFunc(l.rows, position, func(r Parked, position int64) int { return cmp.Compare(r.Position, position) })
}

// Due returns an event with a request: each in its turn, by
// position and then from the beginning again, so that none that is put off again and
// again keeps the rest waiting. An event can be retried only if it is the first of its
// aggregate.
func (l *ParkedSet) Due() (Parked, bool) {
	if l.asked == 0 || l.idle {
		return Parked{}, false
	}
	for range l.rows {
		if l.next >= len(l.rows) {
			l.next = 0
		}
		r := &l.rows[l.next]
		if r.Request == Discard || r.Request == Retry && l.of[parkedKey(r.Aggregate)][0] == r.Position {
			return *r, true
		}
		l.next++
	}
	l.idle = true
	return Parked{}, false
}

// PutOff puts the event that is due behind the others.
func (l *ParkedSet) PutOff() { l.next++ }
