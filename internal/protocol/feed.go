package protocol

import (
	"cmp"
	"slices"
	"time"
)

// One read of the event stream for all lanes of a process.
//
// A Feed promises that each lane gets every event above its position, in order, and that it
// keeps about FeedConfig.Bytes in memory at most. It must never hold the foremost lane back for
// a slow one, and never depend on a notification: it polls, with notifications less often.

// A FeedConfig is how a Feed reads.
type FeedConfig struct {
	// Bytes is how much of the stream may be kept in memory.
	Bytes int
	// Page is the most events to read at once.
	Page int
	// Poll is the longest time between two polls for new events.
	Poll time.Duration
	// BySlot is true if the event store can leave out events in the slots of
	// others.
	BySlot bool
}

const (
	// pollFirst is how soon to poll again after a poll that found nothing.
	pollFirst = 5 * time.Millisecond
	// hintedPolls is how many times FeedConfig.Poll the longest time between two polls is
	// while notifications of new events come.
	hintedPolls = 5
	// aheadPages is how many pages to have beyond the foremost lane: one that
	// it is about to begin, and one that is on its way.
	aheadPages = 2
	// firstPage is how many events to read before it is known how large they are.
	firstPage = 100
)

// A Feed reads an event stream once for all lanes of a process that are near
// each other. It decides what to read, what to keep, and what to serve to which lane;
// it never sees an event.
//
// It keeps windows: pages that follow one another, and the read behind them. A
// lane is served from a window that reaches its position. One whose position is in no window
// gets a window of its own; when that meets another, the lane moves
// over to it. A window without lanes is dropped.
//
//	window of a laggard          window of the others
//	──[page][page]▷ ─────────────[page][page][page][page]▷
//	    ▲                             ▲         ▲   ▲
//	  lane c                        lane a    lanes b, d
//
// If the lanes have a small part of all slots, a window has that part, and a
// backlog is read without the rest. That takes two round trips, so at the end of
// the stream everything is read.
//
// What it serves is final: it is the same under any generation, so it does no harm if a fenced
// lane reads it.
type Feed struct {
	config  FeedConfig
	lanes   []*FeedLane
	windows []*window // in the order in which they were opened
	opened  int
	sizes   sizes // of the events that were read last, in any window
	trusted int   // workers that get notifications of new events
}

// A FeedLane is a lane as the feed knows it.
type FeedLane struct {
	scope  int
	slots  SlotSet
	window *window // nil: it has not asked yet
	after  int64   // as it has last asked
}

// A window is a stretch of the stream, above start.
type window struct {
	number int
	scope  int
	slots  *SlotSet // the slots whose events are all there; nil: all slots
	start  int64
	pages  []FeedPage

	sizes   sizes
	asked   int // how many events the latest read was for
	reading bool
	more    bool  // the latest read was cut short by its limits
	failed  error // of the latest read
	// After a read that found nothing, or failed: when to read again, and how
	// long that was.
	quiet   time.Time
	backoff time.Duration
	// bad is what the latest read has found, if an event store may not return that. A
	// lane that asks for it gets it as it is, and refuses it.
	bad *FeedPage
}

// A FeedPage is what a read has found.
type FeedPage struct {
	Keys []Key
	// Passed is the position up to which everything was read.
	Passed int64
	// More is true if the read was cut short by its limits.
	More  bool
	Bytes int
	// Events are the driver's.
	Events any
}

// NewFeed returns a feed without lanes.
func NewFeed(c FeedConfig) *Feed { return &Feed{config: c} }

// Configure changes how the feed reads from now on.
func (f *Feed) Configure(c FeedConfig) { f.config = c }

// Enter adds a lane of a scope, on a partition. Scope 0 is the whole stream, from
// which lanes of all other scopes may be served as well.
func (f *Feed) Enter(scope, partition, total int) *FeedLane {
	l := &FeedLane{scope: scope, slots: SlotsOf(partition, total)}
	f.lanes = append(f.lanes, l)
	return l
}

// Leave removes a lane.
func (f *Feed) Leave(l *FeedLane) {
	f.lanes = slices.DeleteFunc(f.lanes, func(o *FeedLane) bool { return o == l })
	f.forget()
}

// A Serving is what a lane is served.
type Serving struct {
	// Wait is true if the window's read is under way, or is to begin: ask again after it.
	Wait   bool
	Window int
	// Failed is the error of the latest read; the next read is not due yet.
	Failed error
	// Whole is true if the page is of the whole stream, whatever the lane's scope.
	Whole bool
	// The lane gets Count events of the page, from First on. If Count is 0 and Passed is
	// the position for which it has asked, there is nothing new.
	Page         FeedPage
	First, Count int
	Passed       int64
	// More is true if there is more to be had at once.
	More bool
}

// Ask serves a lane at most limit of the events above after.
func (f *Feed) Ask(now time.Time, l *FeedLane, after int64, limit int) Serving {
	w := f.find(l, after)
	if l.window != w {
		l.window, l.after = w, after
		f.forget()
	}
	l.after = after
	s := Serving{Window: w.number, Whole: w.scope == 0, Passed: after}
	i, _ := slices.BinarySearchFunc(w.pages, after+1, func(p FeedPage, at int64) int { return cmp.Compare(p.Passed, at) })
	switch {
	case i < len(w.pages):
	case w.bad != nil:
		s.Page, s.Count = *w.bad, len(w.bad.Keys)
		return s
	case w.reading || !now.Before(w.quiet):
		s.Wait = true
		return s
	default:
		s.Failed = w.failed
		return s
	}
	s.Page = w.pages[i]
	s.First, _ = slices.BinarySearchFunc(s.Page.Keys, after+1, func(k Key, at int64) int { return cmp.Compare(k.Position, at) })
	s.Count, s.Passed = len(s.Page.Keys)-s.First, s.Page.Passed
	if s.Count > limit {
		s.Count = limit
		s.Passed = s.Page.Keys[s.First+limit-1].Position
	}
	s.More = s.Passed < w.end()
	return s
}

// find returns the window that serves a lane: of those that reach its position, one of the
// whole stream before one of its scope, then the one of the most slots, then the one that has
// read furthest; or a new one.
func (f *Feed) find(l *FeedLane, after int64) *window {
	var best *window
	for _, w := range f.windows {
		if f.serves(w, l) && w.start <= after && after <= w.end() && (best == nil || w.before(best)) {
			best = w
		}
	}
	if best == nil {
		f.opened++
		best = &window{number: f.opened, scope: l.scope, slots: f.slots(l), start: after, sizes: f.sizes}
		f.windows = append(f.windows, best)
	}
	return best
}

// slots returns the slots of a new window for a lane: those of all lanes that read
// the whole stream, so that they can meet there. A lane that enters later with other slots
// gets a window of its own, in which these can meet it. For more than half of all
// slots, it is cheaper to read everything.
func (f *Feed) slots(l *FeedLane) *SlotSet {
	if !f.config.BySlot || l.scope != 0 {
		return nil
	}
	var union SlotSet
	for _, o := range f.lanes {
		if o.scope == 0 {
			union.Add(&o.slots)
		}
	}
	if union.Len() > Slots/2 {
		return nil
	}
	return &union
}

// serves reports whether the window has all of the lane's slots, and is of its
// scope, or of the whole stream if a lane of the whole stream is in it.
func (f *Feed) serves(w *window, l *FeedLane) bool {
	if w.slots != nil && !w.slots.Covers(&l.slots) {
		return false
	}
	return w.scope == l.scope ||
		w.scope == 0 && slices.ContainsFunc(f.lanes, func(o *FeedLane) bool { return o.window == w && o.scope == 0 })
}

func (w *window) before(o *window) bool {
	if w.scope != o.scope {
		return w.scope == 0
	}
	if n, m := w.width(), o.width(); n != m {
		return n > m
	}
	return w.end() > o.end()
}

// width returns the number of slots.
func (w *window) width() int {
	if w.slots == nil {
		return Slots
	}
	return w.slots.Len()
}

// end returns the position up to which the window has read everything.
func (w *window) end() int64 {
	if n := len(w.pages); n > 0 {
		return w.pages[n-1].Passed
	}
	return w.start
}

// span returns the positions of the hindmost and the foremost lane of a window, and
// whether there is a lane.
func (f *Feed) span(w *window) (hindmost, foremost int64, any bool) {
	for _, l := range f.lanes {
		if l.window != w {
			continue
		}
		if !any || l.after < hindmost {
			hindmost = l.after
		}
		foremost, any = max(foremost, l.after), true
	}
	return hindmost, foremost, any
}

// forget drops the windows without lanes, and the pages that all lanes have passed.
func (f *Feed) forget() {
	f.windows = slices.DeleteFunc(f.windows, func(w *window) bool {
		hindmost, _, any := f.span(w)
		for any && len(w.pages) > 0 && w.pages[0].Passed <= hindmost {
			w.drop()
		}
		return !any
	})
}

// drop forgets the first page. A lane that has not passed it reads it again, in
// a window of its own.
func (w *window) drop() {
	w.start = w.pages[0].Passed
	w.pages = slices.Delete(w.pages, 0, 1)
}

// A Fetch is a read for a window: of its scope's events above After, at most
// Limit of them, and not much more than Bytes. Events that are not in Slots may be left
// out, unless Slots is nil. More is true if the read before was cut short, so that
// many events are to be expected.
type Fetch struct {
	Window, Scope int
	Slots         *SlotSet
	After         int64
	Limit, Bytes  int
	More          bool
}

// Fetches returns the reads to begin now. Each is answered with Fetched or Failed.
func (f *Feed) Fetches(now time.Time) []Fetch {
	f.forget()
	var out []Fetch
	for _, w := range f.windows {
		if f.due(w, now) {
			w.reading = true
			bytes := f.page()
			limit := w.sizes.limit(f.config.Page, bytes)
			w.asked = limit
			r := Fetch{Window: w.number, Scope: w.scope, After: w.end(), Limit: limit, Bytes: bytes, More: w.more}
			if w.more {
				r.Slots = w.slots
			}
			out = append(out, r)
		}
	}
	return out
}

// due reports whether to read on: a lane is at the window's end and it is
// time to poll; or one is about to get there, there is more, and room for it. So
// no lane is pushed out of the window by reading ahead.
func (f *Feed) due(w *window, now time.Time) bool {
	_, foremost, _ := f.span(w)
	switch {
	case w.reading || w.bad != nil:
		return false
	case foremost >= w.end():
		return !now.Before(w.quiet)
	case !w.more || w.failed != nil:
		return false
	}
	ahead, bytes := 0, 0
	for _, p := range w.pages {
		if bytes += p.Bytes; p.Passed > foremost {
			ahead++
		}
	}
	return ahead < aheadPages && bytes+f.page() <= f.share()
}

// share is how much one window may keep.
func (f *Feed) share() int { return f.config.Bytes / max(1, len(f.windows)) }

// page returns how many bytes to read at once: so many that aheadPages pages fit, and the one
// that is served.
func (f *Feed) page() int { return f.share() / (aheadPages + 1) }

// A sizes is what is known of how large events are, and of how many can be read at once.
type sizes struct {
	// Of what was read lately: each page counts half as much as the next.
	bytes, events int
	last          int // bytes of an event of the latest page
	most          int // the most events to read after a read that was too large; 0: there was none
}

// limit returns how many events to read at once, of at most page, to get about bytes.
// If sizes differ, the larger ones count, and it aims below bytes: a page that
// gets larger than that is cut, which costs a connection.
func (s *sizes) limit(page, bytes int) int {
	limit := min(page, firstPage)
	if s.events > 0 {
		each := max(1, s.last, (s.bytes+s.events-1)/s.events)
		limit = min(page, bytes/4*3/each)
	}
	if s.most > 0 {
		limit = min(limit, s.most)
	}
	return max(1, limit)
}

// took takes a page in. After a read that was too large, the limit grows again little by little.
func (s *sizes) took(events, bytes, page int) {
	if s.most > 0 {
		s.most += max(1, s.most/8)
	}
	if s.most >= page {
		s.most = 0
	}
	if events == 0 {
		return
	}
	s.bytes, s.events = s.bytes/2+bytes, s.events/2+events
	s.last = (bytes + events - 1) / events
}

// Fetched takes in what a read has found, and reports whether there is anything
// new.
func (f *Feed) Fetched(now time.Time, number int, p FeedPage) bool {
	w := f.window(number)
	if w == nil {
		return false
	}
	w.reading, w.failed, w.more = false, nil, p.More
	if !ascends(w.end(), p.Keys) {
		w.bad = &p
		return true
	}
	if p.Passed <= w.end() {
		w.rest(now, f.poll())
		return false
	}
	w.quiet, w.backoff = time.Time{}, 0
	w.pages = append(w.pages, p)
	w.sizes.took(len(p.Keys), p.Bytes, f.config.Page)
	f.sizes = w.sizes
	// Drop pages that only slow lanes need; never drop what the foremost lane needs.
	for _, foremost, _ := f.span(w); w.pages[0].Passed <= foremost && w.bytes() > f.share(); {
		w.drop()
	}
	return true
}

// ascends reports whether the positions ascend from above after.
func ascends(after int64, page []Key) bool {
	for _, k := range page {
		if k.Position <= after {
			return false
		}
		after = k.Position
	}
	return true
}

// Failed takes in that a read has failed. size is whether it may have been too large (see
// Facts.ForItsSize): then the next one is for half as many events.
func (f *Feed) Failed(now time.Time, number int, why error, size bool) {
	w := f.window(number)
	if w == nil {
		return
	}
	w.reading, w.failed = false, why
	if size {
		w.sizes.most = max(1, w.asked/2)
	}
	w.rest(now, min(f.config.Poll, retryMax))
}

// rest delays the next read, each time for longer.
func (w *window) rest(now time.Time, most time.Duration) {
	w.backoff = min(max(2*w.backoff, pollFirst), most)
	w.quiet = now.Add(w.backoff)
}

func (f *Feed) window(number int) *window {
	i := slices.IndexFunc(f.windows, func(w *window) bool { return w.number == number })
	if i < 0 {
		return nil
	}
	return f.windows[i]
}

func (w *window) bytes() (n int) {
	for _, p := range w.pages {
		n += p.Bytes
	}
	return n
}

// Hint takes in a notification that there may be new events: the feed polls as soon, and as
// often, as if there had just been some. No sooner, since notifications may be many and wrong;
// and not after a failure, about which they tell nothing. A read that is under way may be older
// than the notification: if it finds nothing, the next one is as soon.
func (f *Feed) Hint() {
	for _, w := range f.windows {
		if w.failed == nil && w.backoff > pollFirst {
			w.quiet, w.backoff = w.quiet.Add(pollFirst-w.backoff), pollFirst
		}
		if w.reading {
			w.backoff = 0
		}
	}
}

// A Hearing is what happens to a worker's connection for notifications of new events.
type Hearing int

const (
	HintsUp   Hearing = iota + 1 // it is there, and notifications may come
	HintHeard                    // a notification has come
	HintsDown                    // it is gone
)

// An Ear is that connection of one worker, as the feed knows it.
type Ear struct {
	feed   *Feed
	trusts bool
}

// Listen adds a worker that may get notifications of new events. When it leaves, its driver
// passes HintsDown to Hear.
func (f *Feed) Listen() *Ear { return &Ear{feed: f} }

// Hear takes in what has happened. While notifications come, the feed polls less often.
//
// That LISTEN has succeeded proves nothing: behind a pooler, it does so on a connection that
// belongs to another client by then, and no notification ever comes. So the feed trusts a
// connection only once a notification has come over it, and until it is gone.
//
//  1. notifications come, and the next poll is far off;
//  2. an event is appended while the connection is gone: its notification is lost;
//  3. it waits until that poll.
//
// So when the connection is gone the feed polls at once, and from then on as often as
// without notifications; and when it is back, it polls once for what was appended before. If a
// notification is lost on a connection that is there, its event waits for hintedPolls times
// Poll at most. Simulation: the mutants about hints.
func (e *Ear) Hear(h Hearing) {
	trusts := h == HintHeard
	switch {
	case trusts && !e.trusts:
		e.feed.trusted++
	case e.trusts && !trusts:
		e.feed.trusted--
	case h == HintsDown:
		return // no poll was delayed because of it
	}
	e.trusts = trusts
	e.feed.Hint()
}

// poll returns the longest time between two polls for new events.
func (f *Feed) poll() time.Duration {
	if f.trusted > 0 {
		return f.config.Poll * hintedPolls
	}
	return f.config.Poll
}

// Next returns when to call Fetches again even if nothing happens until then.
// Zero is never.
func (f *Feed) Next() time.Time {
	var at time.Time
	for _, w := range f.windows {
		if _, foremost, _ := f.span(w); !w.reading && w.bad == nil && foremost >= w.end() && (at.IsZero() || w.quiet.Before(at)) {
			at = w.quiet
		}
	}
	return at
}
