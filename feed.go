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

// A feed reads an event store for all workers of the process that were given
// it: what protocol.Feed says, and when.
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
	look    *time.Timer           // for the next look for new events
	busy    sync.WaitGroup        // reads under way

	// For those who watch it.
	end      protocol.Reach
	asking   bool // for that
	gap      *Gap // that the latest read met
	watchers map[*func(Gap, bool)]bool
}

// feeds are those of the process, by their event stores.
var feeds = struct {
	sync.Mutex
	of map[any]any
}{of: map[any]any{}}

// joinFeed returns the feed of an event store for one more worker, which leaves
// it in the end.
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
	f.look = time.AfterFunc(time.Hour, f.poll)
	f.look.Stop()
	if shared {
		feeds.of[events] = f
	}
	return f
}

// join adds a worker. Each gets what it wants at least.
func (f *feed[E]) join(c protocol.FeedConfig, bound time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.workers++
	f.config.Bytes, f.config.Page = max(f.config.Bytes, c.Bytes), max(f.config.Page, c.Page)
	f.config.Poll, f.bound = min(f.config.Poll, c.Poll), max(f.bound, bound)
	f.core.Configure(f.config)
}

// listen returns what one worker hears hints of new events with.
func (f *feed[E]) listen() (hear func(protocol.Hearing)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	subscriber := f.core.Listen()
	return func(h protocol.Hearing) {
		f.mu.Lock()
		defer f.mu.Unlock()
		subscriber.Hear(h)
		f.begin()
	}
}

// leave takes a worker away, and with the last one the feed.
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
		f.look.Stop()
		f.busy.Wait()
	}
}

// poll looks for new events, if it is time to.
func (f *feed[E]) poll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.begin()
}

// begin begins the reads that are due.
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
		f.look.Stop()
	} else {
		f.look.Reset(max(0, at.Sub(now)))
	}
}

// read carries one out.
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
		f.see(protocol.Seen{After: r.After, Head: p.head, End: p.end, More: p.More}, p.gap)
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

// fetch reads a page, and computes for it once what all lanes need of it. It also
// returns the highest position that it has seen; 0: there was nothing above where it
// began; and where the stream ends, -1 if that is not known.
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
		case out && ordered: // what is not is refused, and has to be seen for that
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

// emptyIsValue reports whether an event without an aggregate type, or a context, is one
// whose type, or context, is empty. Of a Table it is, also where it is embedded.
func (f *feed[E]) emptyIsValue() bool {
	_, is := f.events.(interface{ emptyIsValue() })
	return is
}

// A subscription is where a lane gets its events from.
type subscription[E any] struct {
	feed  *feed[E]
	lane  *protocol.FeedLane
	scope Scope
	news  <-chan struct{} // closed when there may be something new since the latest answer
}

// subscribe lets the lane of an assignment in.
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

func (t *subscription[E]) close() {
	t.feed.mu.Lock()
	defer t.feed.mu.Unlock()
	t.feed.core.Leave(t.lane)
}

// A subscriptionPage is what a lane gets: events, and what its core has to know of them.
type subscriptionPage[E any] struct {
	events []Record[E]
	keys   []protocol.Key
	passed int64
	more   bool
}

// read returns events above after, at most limit of them. It waits for a read
// that is under way, but not for new events; nor longer than until one of the
// two channels is closed.
func (t *subscription[E]) read(ctx context.Context, stop <-chan struct{}, after int64, limit int) (subscriptionPage[E], error) {
	for {
		s, ended := t.ask(after, limit)
		switch {
		case s.Failed != nil:
			return subscriptionPage[E]{}, s.Failed
		case !s.Wait:
			return t.cut(s)
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
func (t *subscription[E]) ask(after int64, limit int) (s protocol.Serving, ended <-chan struct{}) {
	f := t.feed
	f.mu.Lock()
	defer f.mu.Unlock()
	s = f.core.Ask(time.Now(), t.lane, after, limit)
	f.begin()
	t.news = f.news
	return s, f.reads[s.Window]
}

// cut cuts the lane's part out of a page.
func (t *subscription[E]) cut(s protocol.Serving) (subscriptionPage[E], error) {
	out := subscriptionPage[E]{passed: s.Passed, more: s.More}
	if s.Count == 0 {
		return out, nil
	}
	end := s.First + s.Count
	out.events, out.keys = s.Page.Events.([]Record[E])[s.First:end], s.Page.Keys[s.First:end]
	if !s.Whole || t.scope.all() {
		return out, nil
	}
	empty := t.feed.emptyIsValue()
	out.keys = slices.Clone(out.keys)
	for i := range out.events {
		skip, err := leavesOut(t.scope, &out.events[i], empty)
		if err != nil {
			return subscriptionPage[E]{}, err
		}
		out.keys[i].Skip = skip
	}
	return out, nil
}

// sizeOf estimates how many bytes a value takes in memory: itself, and what it
// refers to. It is for event stores that don't say (Record.Size).
func sizeOf[E any](v E) int { return int(reflect.TypeFor[E]().Size()) + sizeBehind(&v) }

// sizeBehind is sizeOf without the value itself, to which p points.
func sizeBehind(p any) int {
	v := reflect.ValueOf(p)
	if v.Kind() != reflect.Pointer || v.IsNil() {
		return 0
	}
	m := measure{left: measureMax}
	return m.behind(v.Elem(), true)
}

// measureMax is how many values to look at in an event, and so how deep at most.
const measureMax = 10_000

// A measure adds up what a value refers to. An event may be any value: cyclic, huge,
// or in use by others. So it looks at each pointer once, at no more values than left,
// and, once it has followed a reference, at exported fields only: others belong to the
// type's package, which may write them at any time, as protobuf does.
type measure struct {
	left int
	seen map[unsafe.Pointer]bool
}

// behind returns what a value refers to. Of own values all fields may be looked at.
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

// shallow is behind for a field that is not exported: it follows no reference.
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

// elements returns what the elements of a slice or an array refer to.
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

// all returns what all elements refer to, if those that were looked at refer to n.
func all(n, looked, length int) int {
	if looked == 0 || looked == length {
		return n
	}
	return int(float64(n) / float64(looked) * float64(length))
}

// flat reports whether values of the type refer to nothing.
func flat(t reflect.Type) bool { return t.Kind() <= reflect.Complex128 && t.Kind() != reflect.Invalid }

// first reports whether a reference is met for the first time.
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
