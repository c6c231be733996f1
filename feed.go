package orchestrator

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// A feed reads an event store for all workers of the process that use it. protocol.Feed
// decides what it reads, and when.
type feed[E any] struct {
	events EventStore[E]
	shared bool // it is among feeds
	ctx    context.Context
	stop   context.CancelFunc

	mu      sync.Mutex // of all that follows
	core    *protocol.Feed
	config  protocol.FeedConfig
	bound   time.Duration // of a read
	workers int
	scopes  []Scope               // by the core's numbers; the first is the whole stream
	reads   map[int]chan struct{} // by window: closed when the read under way has ended
	news    chan struct{}         // closed when there may be something new for lanes that rest
	polls   *time.Timer           // for the next poll for new events
	busy    sync.WaitGroup        // reads under way

	// For lag and reports.
	end      protocol.Reach
	asking   bool // the event store is being asked for its head
	gap      *Gap // that the latest read waits at
	watchers map[*func(Gap, bool)]bool
}

// feeds are those of the process, by their event stores.
var feeds = struct {
	sync.Mutex
	of map[any]any
}{of: map[any]any{}}

// joinFeed returns the feed of an event store for one more worker, which must leave it in
// the end.
func joinFeed[E any](events EventStore[E], c protocol.FeedConfig, bound time.Duration) *feed[E] {
	shared := reflect.ValueOf(events).Comparable()
	_, c.BySlot = events.(*Table[E]) // itself: a store that embeds one reads in its own way
	feeds.Lock()
	defer feeds.Unlock()
	if shared {
		if f, ok := feeds.of[events].(*feed[E]); ok {
			f.join(c, bound)
			return f
		}
	}
	f := &feed[E]{
		events: events, shared: shared, end: protocol.NewReach(), core: protocol.NewFeed(c), config: c, bound: bound, workers: 1,
		scopes: []Scope{{}}, reads: map[int]chan struct{}{}, news: make(chan struct{}), watchers: map[*func(Gap, bool)]bool{},
	}
	f.ctx, f.stop = context.WithCancel(context.Background())
	f.polls = time.AfterFunc(time.Hour, f.poll)
	f.polls.Stop()
	if shared {
		feeds.of[events] = f
	}
	return f
}

// join adds a worker. The largest page and buffer of all workers apply, and the shortest poll
// interval.
func (f *feed[E]) join(c protocol.FeedConfig, bound time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers++
	f.config.Bytes, f.config.Page = max(f.config.Bytes, c.Bytes), max(f.config.Page, c.Page)
	f.config.Poll, f.bound = min(f.config.Poll, c.Poll), max(f.bound, bound)
	f.core.Configure(f.config)
}

// listen returns the function to call with one worker's notifications of new events.
func (f *feed[E]) listen() (heard func(protocol.Hearing)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	hearer := f.core.Listen()
	return func(h protocol.Hearing) {
		f.mu.Lock()
		defer f.mu.Unlock()
		hearer.Hear(h)
		f.begin()
	}
}

// leave removes a worker, and with the last one the feed.
func (f *feed[E]) leave() {
	feeds.Lock()
	f.mu.Lock()
	f.workers--
	last := f.workers == 0
	if last && f.shared {
		delete(feeds.of, f.events)
	}
	if last {
		f.stop() // from here on no read begins
	}
	f.mu.Unlock()
	feeds.Unlock()
	if last {
		f.polls.Stop()
		f.busy.Wait()
	}
}

// poll polls for new events, if that is due.
func (f *feed[E]) poll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
}

// begin begins the reads that are due. f.mu is locked.
func (f *feed[E]) begin() {
	if f.ctx.Err() != nil {
		return
	}
	now := time.Now()
	for _, r := range f.core.Fetches(now) {
		ended := make(chan struct{})
		f.reads[r.Window] = ended
		patience := f.bound
		f.busy.Go(func() { f.read(r, patience, ended) })
	}
	if at := f.core.Next(); at.IsZero() {
		f.polls.Stop()
	} else {
		f.polls.Reset(max(0, at.Sub(now)))
	}
}

// read carries out one read.
func (f *feed[E]) read(r protocol.Fetch, patience time.Duration, ended chan struct{}) {
	type fetched struct {
		protocol.FeedPage
		head, end int64
		gap       *Gap
	}
	p, err := bounded(f.ctx, patience, func(ctx context.Context) (p fetched, err error) {
		if p.FeedPage, p.head, p.end, err = f.fetch(ctx, r); err == nil {
			p.gap = f.waiting()
		}
		return p, err
	}, nil)
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil {
		f.noteRead(protocol.Seen{After: r.After, Head: p.head, End: p.end, More: p.More}, p.gap)
	}
	delete(f.reads, r.Window)
	close(ended)
	if err != nil {
		f.core.Failed(time.Now(), r.Window, err, store.FactsOf(err).ForItsSize())
	}
	if err != nil || f.core.Fetched(time.Now(), r.Window, p.FeedPage) {
		close(f.news)
		f.news = make(chan struct{})
	}
	f.begin()
}

// fetch reads a page, and computes once what all lanes need of it. It also returns the
// highest position that it has seen (0: there was none above where it began) and the end of
// the stream (-1: not known).
func (f *feed[E]) fetch(ctx context.Context, r protocol.Fetch) (page protocol.FeedPage, head, end int64, err error) {
	p, err := f.page(ctx, r)
	if err != nil {
		return page, 0, -1, err
	}
	keys := make([]protocol.Key, len(p.events))
	for i := range p.events {
		e := &p.events[i]
		keys[i] = protocol.Key{Position: e.Position, Slot: protocol.SlotOf(e.AggregateID), Aggregate: e.AggregateID}
	}
	if p.passed > r.After {
		head = p.passed
	}
	return protocol.FeedPage{Keys: keys, Passed: p.passed, More: p.more, Bytes: p.bytes, Events: p.events}, max(head, p.head), p.end, nil
}

func (f *feed[E]) page(ctx context.Context, r protocol.Fetch) (p page[E], err error) {
	f.mu.Lock()
	scope := f.scopes[r.Scope]
	f.mu.Unlock()
	switch t, ok := f.events.(*Table[E]); {
	case ok && r.Slots != nil:
		return t.readOwn(ctx, r.Slots, r.After, r.Limit, r.Bytes)
	case ok:
		return t.read(ctx, scope, r.After, r.Limit, r.Bytes, !r.More)
	}
	if failed := contained(func() { p, err = f.foreign(ctx, scope, r) }); failed != nil {
		return p, fmt.Errorf("the event store %T failed: %w", f.events, failed)
	}
	return p, err
}

// foreign reads a page from an event store that is no Table.
func (f *feed[E]) foreign(ctx context.Context, scope Scope, r protocol.Fetch) (page[E], error) {
	read, err := f.events.Read(ctx, ReadRequest{After: r.After, Limit: r.Limit, Scope: scope, MaxBytes: r.Bytes})
	if err != nil {
		return page[E]{}, err
	}
	positions := make([]int64, len(read.Records))
	for i := range read.Records {
		positions[i] = read.Records[i].Position
	}
	p := page[E]{end: -1}
	var ordered bool
	if p.passed, p.more, ordered, err = protocol.StorePage(r.After, r.Limit, positions, read.Through, read.More); err != nil {
		return page[E]{}, err
	}
	for i := range read.Records {
		e := &read.Records[i]
		out, err := leavesOut(scope, e, f.emptyIsValue())
		switch {
		case err != nil:
			return page[E]{}, err
		case out && ordered: // else the page is refused, and the lane must see why
			continue
		case e.Size > 0:
			p.bytes += e.Size
		default:
			p.bytes += sizeOf(*e)
		}
		p.events = append(p.events, *e)
	}
	return p, nil
}

// emptyIsValue reports whether an empty aggregate type, context or event type is a value, and
// does not mean that the event store has not set it. It is one in a Table, embedded or not.
func (f *feed[E]) emptyIsValue() bool {
	_, is := f.events.(interface{ emptyIsValue() })
	return is
}

// A subscription is a lane's access to a feed.
type subscription[E any] struct {
	feed  *feed[E]
	lane  *protocol.FeedLane
	scope Scope
	news  <-chan struct{} // closed when there may be new events since the latest answer
}

// subscribe returns a subscription for the lane of an assignment.
func (f *feed[E]) subscribe(s Scope, a protocol.Assignment) *subscription[E] {
	f.mu.Lock()
	defer f.mu.Unlock()
	i := slices.IndexFunc(f.scopes, s.equal)
	if i < 0 {
		i = len(f.scopes)
		f.scopes = append(f.scopes, s)
	}
	return &subscription[E]{feed: f, lane: f.core.Enter(i, a.Partition, a.Total), scope: s}
}

func (s *subscription[E]) close() {
	s.feed.mu.Lock()
	defer s.feed.mu.Unlock()
	s.feed.core.Leave(s.lane)
}

// A subscriptionPage is what a lane has read: events, and their keys for its core.
type subscriptionPage[E any] struct {
	events []Record[E]
	keys   []protocol.Key
	passed int64
	more   bool
}

// read returns events above after, at most limit of them. It waits for a read that is under
// way, but not for new events, and not after stop is closed or ctx has ended.
func (s *subscription[E]) read(ctx context.Context, stop <-chan struct{}, after int64, limit int) (subscriptionPage[E], error) {
	for {
		served, ended := s.ask(after, limit)
		switch {
		case served.Failed != nil:
			return subscriptionPage[E]{}, served.Failed
		case !served.Wait:
			return s.cut(served)
		}
		select {
		case <-ended:
		case <-stop:
			return subscriptionPage[E]{passed: after}, nil
		case <-ctx.Done():
			return subscriptionPage[E]{}, context.Cause(ctx)
		}
	}
}

// ask asks the core once.
func (s *subscription[E]) ask(after int64, limit int) (served protocol.Serving, ended <-chan struct{}) {
	f := s.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	served = f.core.Ask(time.Now(), s.lane, after, limit)
	f.begin()
	s.news = f.news
	return served, f.reads[served.Window]
}

// cut returns the lane's part of a page.
func (s *subscription[E]) cut(served protocol.Serving) (subscriptionPage[E], error) {
	out := subscriptionPage[E]{passed: served.Passed, more: served.More}
	if served.Count == 0 {
		return out, nil
	}
	end := served.First + served.Count
	out.events, out.keys = served.Page.Events.([]Record[E])[served.First:end], served.Page.Keys[served.First:end]
	if !served.Whole || s.scope.all() {
		return out, nil
	}
	empty := s.feed.emptyIsValue()
	out.keys = slices.Clone(out.keys)
	for i := range out.events {
		skip, err := leavesOut(s.scope, &out.events[i], empty)
		if err != nil {
			return subscriptionPage[E]{}, err
		}
		out.keys[i].Skip = skip
	}
	return out, nil
}

// sizeOf estimates how many bytes a value takes in memory, with what it refers to. It is for
// event stores that don't set Record.Size.
func sizeOf[E any](v E) int { return int(reflect.TypeFor[E]().Size()) + sizeBehind(&v) }

// sizeBehind is sizeOf for what p points to, without that value itself.
func sizeBehind(p any) int {
	v := reflect.ValueOf(p)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return 0
	}
	m := measure{left: measureMax}
	return m.behind(v.Elem(), true)
}

// measureMax is how many values are visited in an event, which also limits the depth.
const measureMax = 10_000

// A measure adds up what a value refers to. An event may be any value: cyclic, huge, or in
// use elsewhere. So it follows each pointer once, visits no more values than left, and, once
// it has followed a reference, only exported fields: the others belong to the type's
// package, which may write them at any time, as protobuf does.
type measure struct {
	left int
	seen map[unsafe.Pointer]bool
}

// behind returns the size of what a value refers to. All fields of own values are visited.
func (m *measure) behind(v reflect.Value, own bool) (n int) {
	if m.left--; m.left < 0 {
		return 0
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		if v.IsNil() || !m.first(v.UnsafePointer(), v.Len() > 0) {
			return 0
		}
		return v.Len()*int(v.Type().Elem().Size()) + m.elements(v, false)
	case reflect.Array:
		return m.elements(v, own)
	case reflect.Map:
		if v.IsNil() || !m.first(v.UnsafePointer(), true) {
			return 0
		}
		n = v.Len() * int(v.Type().Key().Size()+v.Type().Elem().Size())
		looked, behind := 0, 0
		for entries := v.MapRange(); m.left > 0 && entries.Next(); looked++ {
			behind += m.behind(entries.Key(), false) + m.behind(entries.Value(), false)
		}
		return n + all(behind, looked, v.Len())
	case reflect.Pointer:
		if !v.IsNil() && m.first(v.UnsafePointer(), true) {
			n = int(v.Type().Elem().Size()) + m.behind(v.Elem(), false)
		}
	case reflect.Interface:
		if !v.IsNil() {
			n = int(v.Elem().Type().Size()) + m.behind(v.Elem(), false)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			switch f := v.Type().Field(i); {
			case f.IsExported():
				n += m.behind(v.Field(i), own)
			case own:
				n += m.shallow(v.Field(i))
			}
		}
	}
	return n
}

// shallow is behind for a field that is not exported. It follows no reference.
func (m *measure) shallow(v reflect.Value) (n int) {
	if m.left--; m.left < 0 {
		return 0
	}
	switch v.Kind() {
	case reflect.String:
		return v.Len()
	case reflect.Slice:
		return v.Len() * int(v.Type().Elem().Size())
	case reflect.Struct:
		for i := range v.NumField() {
			n += m.shallow(v.Field(i))
		}
	}
	return n
}

// elements returns the size of what the elements of a slice or an array refer to.
func (m *measure) elements(v reflect.Value, own bool) (n int) {
	switch t := v.Type().Elem(); {
	case flat(t):
		return 0
	case t.Kind() == reflect.String, t.Kind() == reflect.Slice && flat(t.Elem()): // cheap
		for i := range v.Len() {
			e := v.Index(i)
			if n += e.Len(); t.Kind() == reflect.Slice {
				n += e.Len() * (int(t.Elem().Size()) - 1)
			}
		}
		return n
	}
	i := 0
	for ; i < v.Len() && m.left > 0; i++ {
		n += m.behind(v.Index(i), own)
	}
	return all(n, i, v.Len())
}

// all returns the size of what all elements refer to, estimated from n for those visited.
func all(n, looked, length int) int {
	if looked == 0 || looked == length {
		return n
	}
	return int(float64(n) / float64(looked) * float64(length))
}

// flat reports whether values of the type refer to nothing.
func flat(t reflect.Type) bool { return t.Kind() <= reflect.Complex128 && t.Kind() != reflect.Invalid }

// first reports whether a reference was not followed before.
func (m *measure) first(p unsafe.Pointer, counts bool) bool {
	if !counts || m.seen[p] {
		return false
	}
	if m.seen == nil {
		m.seen = map[unsafe.Pointer]bool{}
	}
	m.seen[p] = true
	return true
}
