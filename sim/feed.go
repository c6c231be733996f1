package sim

import (
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A feed reads the event stream for all lanes of a process, as protocol.Feed decides. It is
// what feed.go is in a real process.
type feed struct {
	p             *worker
	core          *protocol.Feed
	listener      listener
	scopes        []scope // by the core's numbers; the first one is the whole stream
	subscriptions []*subscription
	news          int       // the number of times that there may have been new events for resting lanes
	look          time.Time // the time of the next poll; zero: not planned
	stop          func()    // stops the timer of the poll

	opened int // the latest known window

	// For mutants: stale is what was read beyond a gap, by the start of the next read;
	// latest is the page that was read last, of window latestOf.
	stale    map[int64][]event
	latest   protocol.FeedPage
	latestOf int
}

func newFeed(p *worker) *feed {
	c := p.w.plan.feed
	c.Poll, c.BySlot = p.w.plan.poll, p.w.plan.store == nil
	f := &feed{p: p, core: protocol.NewFeed(c), scopes: []scope{""}, stop: func() {}, stale: map[int64][]event{}}
	f.listener.core = f.core.Listen()
	return f
}

// begin begins the reads that are due.
func (f *feed) begin() {
	p := f.p
	if p.returned {
		return
	}
	now := p.now()
	for _, r := range f.core.Fetches(now) {
		ahead := !slices.ContainsFunc(f.subscriptions, func(t *subscription) bool { return t.window == r.Window && t.after >= r.After })
		p.read(f.scopes[r.Scope], r, func(page protocol.FeedPage, err error) {
			if s, ok := page.Events.(*stretch); ok {
				s.ahead = ahead
			}
			f.ended(r.Window, page, err)
		})
	}
	if at := f.core.Next(); at != f.look {
		f.stop()
		f.look, f.stop = at, func() {}
		if !at.IsZero() {
			f.stop = p.after(at.Sub(now), f.poll)
		}
	}
}

// poll polls for new events if it is time.
func (f *feed) poll() {
	f.look = time.Time{}
	f.begin()
}

// ended tells the waiting lanes that a read has ended.
func (f *feed) ended(window int, page protocol.FeedPage, err error) {
	p := f.p
	fresh := true
	if err != nil {
		f.core.Failed(p.now(), window, err, store.FactsOf(err).ForItsSize())
	} else {
		f.latest, f.latestOf = page, window
		fresh = f.core.Fetched(p.now(), window, page)
	}
	for _, t := range f.subscriptions {
		if t.waits && t.window == window {
			t.waits = false
			p.after(p.between(0, 50*time.Microsecond), t.ask)
		}
	}
	if fresh {
		f.news++
		for _, t := range f.subscriptions {
			if t.lane.resting {
				t.lane.wake()
			}
		}
	}
	f.begin()
}

// A subscription serves a lane with its events.
type subscription struct {
	feed  *feed
	lane  *lane
	core  *protocol.FeedLane
	scope scope

	after int64 // the position after which it asks
	limit int
	waits bool // it waits for the read of its window
	news  int  // feed.news at its latest question

	window int
	whole  bool     // the latest answer is from a read of the whole stream
	page   *stretch // that served it last
}

// subscribe adds a lane.
func (f *feed) subscribe(l *lane, s scope) *subscription {
	i := slices.Index(f.scopes, s)
	if f.p.w.rules.mixesEventTypes {
		i = slices.IndexFunc(f.scopes, func(o scope) bool { return o == s || o != "" && slices.Equal(o.types(), s.types()) })
	}
	if i < 0 {
		i = len(f.scopes)
		f.scopes = append(f.scopes, s)
	}
	a := l.id.Assignment
	k := a.Partition
	if f.p.w.rules.countsOnePartition && len(l.run.lanes) > 0 {
		k = l.run.lanes[0].id.Assignment.Partition
	}
	t := &subscription{feed: f, lane: l, core: f.core.Enter(i, k, a.Total), scope: s}
	f.subscriptions = append(f.subscriptions, t)
	return t
}

func (t *subscription) close() {
	f := t.feed
	f.subscriptions = slices.DeleteFunc(f.subscriptions, func(o *subscription) bool { return o == t })
	f.core.Leave(t.core)
}

// read reads for the lane. It waits for a read that is under way, but not for new events,
// and only until the lane must stop.
func (t *subscription) read(after int64, limit int) {
	t.after, t.limit = after, limit
	t.ask()
}

// ask asks the core once.
func (t *subscription) ask() {
	f := t.feed
	s := f.core.Ask(f.p.now(), t.core, t.after, t.limit)
	if ahead, others := t.others(); others && t.left(s) && f.p.w.rules.skipsDropped {
		s = f.core.Ask(f.p.now(), t.core, ahead, t.limit)
	}
	t.follow(s)
	f.begin()
	t.news = f.news
	switch {
	case s.Failed != nil:
		t.answer(s.Failed, nil, protocol.LaneAnswer{})
	case !s.Wait:
		t.serve(s)
	default:
		t.waits = true
		if t.lane.run.draining {
			t.stop()
		}
	}
}

// stop ends the wait for a read because the lane must stop.
func (t *subscription) stop() {
	if !t.waits {
		return
	}
	t.waits = false
	var err error
	if t.lane.run.canceled {
		err = errNoAnswer
	}
	t.answer(err, nil, protocol.LaneAnswer{Passed: t.after})
}

// serve cuts the lane's part out of a page.
func (t *subscription) serve(s protocol.Serving) {
	rules := t.feed.p.w.rules
	if p := t.feed.latest; rules.wrongWindow && t.feed.latestOf != s.Window && len(p.Keys) > 0 && p.Keys[0].Position > t.after {
		s.Page, s.First, s.Count, s.Passed = p, 0, len(p.Keys), p.Passed
	}
	if s.Count == 0 {
		t.answer(nil, nil, protocol.LaneAnswer{Passed: s.Passed, More: s.More})
		return
	}
	end := s.First + s.Count
	events, keys := s.Page.Events.(*stretch).events[s.First:end], s.Page.Keys[s.First:end]
	if s.Whole && t.scope != "" && !rules.forgetsScope {
		keys = slices.Clone(keys)
		for i, e := range events {
			keys[i].Skip = !t.scope.includes(e)
		}
	}
	t.answer(nil, events, protocol.LaneAnswer{Page: keys, Passed: s.Passed, More: s.More})
}

func (t *subscription) answer(err error, page []event, a protocol.LaneAnswer) {
	l := t.lane
	l.p.post(func() {
		l.page = page
		l.answer(err, a)
	})
}

// A stretch is the events of a page, with how they were read.
type stretch struct {
	events []event
	ahead  bool          // it was read ahead
	own    bool          // it has only the process's own slots
	first  *subscription // the first one that it served
}

// These are the ways in which a lane gets its events.
const (
	servedShared = "from a page that another lane has read"
	servedAhead  = "from a page that was read ahead"
	servedWhole  = "from a read of the whole stream, filtered by its scope"
	servedOwn    = "from a page of its process's slots"
	leftBehind   = "from a window of its own, since its page was dropped"
	pageShort    = "from a page of the program's own event store that was shorter than possible"
	caughtUp     = "from the others' window, which it has reached"
)

// left reports whether the lane's window has lost its page.
func (t *subscription) left(s protocol.Serving) bool {
	return t.window != 0 && s.Window > t.feed.opened && s.Whole == t.whole
}

// others returns the lowest position of the other lanes in the lane's window, if there are
// any.
func (t *subscription) others() (hindmost int64, any bool) {
	for _, o := range t.feed.subscriptions {
		if o != t && o.window == t.window && (!any || o.after < hindmost) {
			hindmost, any = o.after, true
		}
	}
	return hindmost, any
}

// follow records how the lane is served.
func (t *subscription) follow(s protocol.Serving) {
	switch {
	case t.left(s):
		t.note(leftBehind)
	case t.window != 0 && t.window != s.Window && s.Whole == t.whole:
		t.note(caughtUp)
	}
	t.feed.opened = max(t.feed.opened, s.Window)
	t.window, t.whole = s.Window, s.Whole
	page, _ := s.Page.Events.(*stretch)
	if s.Count == 0 || page == t.page {
		return
	}
	t.page = page
	if page.own {
		t.note(servedOwn)
	}
	switch {
	case page.first == nil:
		page.first = t
		if page.ahead {
			t.note(servedAhead)
		}
	case page.first != t:
		t.note(servedShared)
	}
	if s.Whole && t.scope != "" {
		t.note(servedWhole)
	}
}

func (t *subscription) note(how string) {
	t.feed.p.record(fact{kind: served, projection: t.lane.id.Projection, text: how})
}
