package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
)

// A plan is everything that a seed decides before the world begins: the workers, their
// settings, what goes wrong and how often. What it leaves open, such as the duration of one
// request, is drawn on the way by generators of each worker's own. So a smaller plan of the
// same seed resembles the larger one.
type plan struct {
	seed uint64

	timing        protocol.Timing // of the first program
	poll          time.Duration
	feed          protocol.FeedConfig // without its Poll
	batch         int
	maxPartitions int
	joinWindow    time.Duration
	retry         protocol.Backoff
	stopOnFailure bool
	// maxParked is the most parked events of a lane. operate is about how often operators
	// look at them. Projections that park can't handle some events until mended.
	maxParked int
	operate   time.Duration
	// orderParks is about how often an operator orders an event parked; 0: never. Then all
	// projections fail at some events.
	orderParks time.Duration
	mended     time.Duration
	// unreadable is the share of events that can't be read until their rows are rewritten.
	unreadable int
	rewritten  time.Duration

	// programs are the versions of the program: the first one, and one for each deploy.
	programs []program
	sets     int             // that share the database
	workers  []time.Duration // start times of the first workers; the sets take turns
	wants    []int           // the most partitions of the workers, in turn; none: one each
	drift    int             // the largest difference of clocks, in parts per million

	// crowd workers join one after another after the faults, at intervals.
	crowd      int
	crowdEvery time.Duration

	length   time.Duration // of the time with faults
	faults   []fault
	orders   []order
	starting bool     // some projections do not start at the beginning
	rebuild  *rebuild // nil: none

	listening *listening // nil: no notifications are sent
	store     *ownStore  // nil: Table

	network  network
	handlers handlers
	appends  appends
	// hold: coordination transactions may wait between their last statement and COMMIT, and
	// transactions may be prepared. Only in memory.
	hold bool
}

// A program is a version of the program: its projections and its timing settings. The
// settings should be the same in all versions, and may differ.
type program struct {
	timing      protocol.Timing
	projections []projection
	leaseOnly   bool
	vacate      time.Duration // its workers' ReplacementWindow
}

type projection struct {
	name string
	kind protocol.LaneKind
	set  int // whose workers run it
	// scope and parks are the same in all versions. parks is the number of failures after
	// which it parks an event; 0: never.
	scope scope
	parks int
	start start
	// rebuildOf is the live projection of which this is a new version; "": none.
	rebuildOf string
}

// of returns the projections of a replica set.
func (p program) of(set int) []projection {
	return slices.DeleteFunc(slices.Clone(p.projections), func(q projection) bool { return q.set != set })
}

// setName returns the name of a replica set in the database.
func setName(set int) string {
	if set == 0 {
		return "sim"
	}
	return fmt.Sprint("sim", set)
}

// Rates are per thousand.
type (
	network struct {
		latency              time.Duration // typical
		lostRequest          int
		lostReply, slow      int
		slowBy               time.Duration // at most
		holdCommit, halfOpen int
		hints                int // notifications that arrive
	}
	handlers struct {
		typical            time.Duration
		slow, fail, panics int
		deaf               int // ignore their cancellation
		outlive            int // go on after their worker has given up
		poison             int // events that fail every time
		timeout, kill      int // exceed a limit of the server; end their own connection
		chain              int // end their transaction and begin another one
		spoil, violate     int // fail in their transaction, at once or at COMMIT, and don't notice
		slowBy             time.Duration
	}
	appends struct {
		every            time.Duration
		aggregates       int
		late, long, lose int // stay open for a while, for long; roll back
		prepare          int
		first            int // take their positions first and insert at the end
		savepoint        int // go back to a savepoint and stay open
	}
)

// A faultKind is a kind of planned fault.
type faultKind int

const (
	crash faultKind = iota
	leave
	join
	freeze
	freezeAtCommit  // between the checkpoint write and COMMIT
	freezeInHandler // while a handler runs
	congestion      // its replies come late, and then it is cut off
	cutOff
	databaseDown
	clockStep
	deploy
	revoke           // a privilege, for a while
	endSession       // the server ends the liveness connection
	endSessionCutOff // likewise, and the worker can't notice
	freezeAtPark     // between the decision to park events and the park
	delayPark        // a park is given up and arrives later
	misroute         // its new connections lead to a standby for a while
	cacheNumbers     // writers' sessions cache numbers of the sequence for a while
	stranger         // a worker starts whose connections lead to another table
	blockSession     // the worker loses its liveness connection and gets no other one for a while
	fakeLocks        // another program takes all liveness locks
	stutter          // the process is frozen for most of each second
	endLane          // a lane of the worker ends unreported
	faultKinds
)

func (k faultKind) String() string {
	return [...]string{"crash", "leave", "join", "freeze", "freeze before COMMIT", "freeze in a handler", "congestion", "cut off", "database down", "clock step", "deploy", "privilege revoked", "liveness connection ended", "liveness connection ended and cut off", "freeze before a park", "late park", "connections to a standby", "sequence caches", "worker of another table", "liveness connection blocked", "liveness locks taken", "repeated freezes", "lane ends unreported"}[k]
}

// A fault happens at a time to the n-th worker that is alive then.
type fault struct {
	at     time.Duration
	kind   faultKind
	worker int
	// length is the duration, the delay before a crashed worker restarts, the step of the
	// clock, or the interval of a deploy.
	length time.Duration
}

func (f fault) String() string {
	return fmt.Sprintf("%s at %s, worker %d, %s", f.kind, f.at, f.worker, f.length)
}

// options restrict a plan.
type options struct {
	// postgres: only what the schedule can do to a real server.
	postgres bool
}

// planOf makes the plan of a seed. Most rates are zero in most plans: a world in which
// everything fails all the time makes no progress.
func planOf(seed uint64, o options) plan {
	r := rand.New(rand.NewPCG(seed, 0))
	heartbeat := pick(r, 200*time.Millisecond, time.Second, time.Second, 5*time.Second)
	lease := heartbeat * time.Duration(pick(r, 3, 4, 6))
	p := plan{
		seed:          seed,
		timing:        protocol.Timing{Heartbeat: heartbeat, Lease: lease, Drain: pick(r, lease/2, lease, 2*lease)},
		poll:          pick(r, heartbeat/5, heartbeat/2, heartbeat),
		batch:         pick(r, 1, 2, 5, 10, 100),
		maxPartitions: pick(r, 0, 0, 0, 1, 2, 4),
		joinWindow:    pick(r, time.Nanosecond, heartbeat/2, heartbeat), // 0 is the default elsewhere
		retry:         protocol.Backoff{Min: 100 * time.Millisecond, Max: lease / 2},
		stopOnFailure: chance(r, 100),
		sets:          pick(r, 1, 1, 1, 1, 1, 1, 2, 3),
		length:        lease * time.Duration(4+r.IntN(12)),
		drift:         pick(r, 0, 100, 10_000),
		hold:          !o.postgres,
	}
	p.joinWindow = p.joinWindow.Truncate(time.Microsecond)
	uneven := chance(r, 200)
	p.addProgram(r, uneven)
	p.network = network{
		latency:     pick(r, 200*time.Microsecond, time.Millisecond, 10*time.Millisecond),
		lostRequest: rate(r, 30), lostReply: rate(r, 30), slow: rate(r, 30),
		slowBy:     pick(r, lease/10, lease/2, 2*lease),
		holdCommit: rate(r, 300), halfOpen: rate(r, 500),
	}
	p.handlers = handlers{
		typical: pick(r, 100*time.Microsecond, time.Millisecond, heartbeat/20, heartbeat/5),
		slow:    rate(r, 20), fail: rate(r, 50), panics: rate(r, 10), deaf: rate(r, 300),
		outlive: rate(r, 1000), spoil: rate(r, 30), violate: rate(r, 30),
		slowBy: pick(r, lease/4, lease, 2*p.timing.Drain),
	}
	if chance(r, 100) { // handlers that exceed any patience
		h := &p.handlers
		h.slow, h.deaf, h.outlive, h.slowBy = 20, 1000, 1000, 3*p.timing.Drain
	}
	p.appends = appends{
		every: p.length / time.Duration(20+r.IntN(80)), aggregates: pick(r, 3, 20, 200),
		late: rate(r, 400), long: rate(r, 30), lose: rate(r, 200), prepare: rate(r, 100),
	}
	if chance(r, 250) {
		p.wants = pick(r, []int{2}, []int{1, 3}, []int{4, 1, 1}, []int{1, 16})
		p.poll = heartbeat
	}
	n := pick(r, 1, 2, 2, 3, 3, 4, 5, 8)
	if !o.postgres && chance(r, 3) {
		n = 100 + r.IntN(200)
		p.sets, p.programs[0].projections, p.wants = 1, p.programs[0].projections[:1], nil
		p.poll, p.length = max(p.poll, heartbeat), 4*lease
		p.appends.every = p.length / 20
	}
	if o.postgres {
		p.length = lease * time.Duration(3+r.IntN(5))
		p.appends.every = p.length / time.Duration(15+r.IntN(25))
		p.poll = 2 * heartbeat // a statement costs real time
		p.hold, p.network.holdCommit, p.appends.prepare = false, 0, 0
		if len(p.wants) > 0 {
			p.wants = []int{1, 3}
		}
	}
	if n < 5 && chance(r, 50) {
		p.crowd, p.wants = 30, nil
	}
	for i := range n {
		at := time.Duration(0)
		if i > 0 && chance(r, 700) {
			at = between(r, 0, p.length)
		}
		p.workers = append(p.workers, at.Truncate(time.Microsecond))
	}
	p.drawFaults(r, uneven)
	p.drawReading(rand.New(rand.NewPCG(seed, 2)))
	p.drawParking(rand.New(rand.NewPCG(seed, 4)))
	p.drawBatches(rand.New(rand.NewPCG(seed, 13)))
	if !o.postgres && slices.ContainsFunc(p.faults, func(f fault) bool { return f.kind == congestion }) {
		p.congest()
	}
	p.network.hints = pick(r, 0, 500, 1000)
	p.drawOrders(rand.New(rand.NewPCG(seed, 4)))
	p.drawUnreadable(rand.New(rand.NewPCG(seed, 6)))
	presence := rand.New(rand.NewPCG(seed, 3))
	p.drawPresence(presence)
	if !o.postgres && chance(presence, 40) {
		p.hurry(presence)
	}
	p.drawMisdeeds(rand.New(rand.NewPCG(seed, 7)))
	if !o.postgres {
		p.drawTable(rand.New(rand.NewPCG(seed, 8)))
	}
	p.drawDistance(rand.New(rand.NewPCG(seed, 9)), o)
	p.drawLanes(rand.New(rand.NewPCG(seed, 10)))
	if !o.postgres {
		p.drawListening(rand.New(rand.NewPCG(seed, 11)))
		p.drawStore(rand.New(rand.NewPCG(seed, 12)))
	}
	p.drawStarts(rand.New(rand.NewPCG(seed, 13)), o)
	p.drawOrderParks(rand.New(rand.NewPCG(seed, 14)))
	p.drawVacancies(rand.New(rand.NewPCG(seed, 17)))
	p.drawRebuild(rand.New(rand.NewPCG(seed, 18)), o)
	p.crowdEvery = (p.settle() * 5 / 4 / 30).Truncate(time.Microsecond)
	return p
}

// drawMisdeeds draws what handlers do wrong.
func (p *plan) drawMisdeeds(r *rand.Rand) {
	h := &p.handlers
	if h.fail+h.panics+h.spoil+h.violate > 0 {
		h.timeout, h.kill, h.chain = rate(r, 30), rate(r, 20), rate(r, 30)
	}
}

// congest makes it matter that a worker goes on slightly too long without the database:
// handlers have much to do, and other workers take over as soon as they may.
func (p *plan) congest() {
	p.handlers.typical, p.batch, p.appends.every = p.timing.Heartbeat/5, max(p.batch, 10), p.length/100
	p.network = network{latency: time.Millisecond}
	p.sets, p.programs = 1, []program{{timing: p.timing, projections: []projection{{name: "plain"}}}}
	p.maxPartitions, p.wants = 0, nil
	p.faults = slices.DeleteFunc(p.faults, func(f fault) bool {
		return f.kind == clockStep || f.kind == databaseDown || f.kind == deploy || f.kind == revoke
	})
}

// hurry makes it matter that a worker whose lock is missing gets time to stop: handlers
// always run, each for a while; many workers lose their liveness connections without
// noticing; other workers take over quickly.
func (p *plan) hurry(r *rand.Rand) {
	p.timing = protocol.Timing{Heartbeat: 2 * time.Second, Lease: 8 * time.Second, Drain: 8 * time.Second}
	p.sets, p.programs = 1, []program{{timing: p.timing, projections: []projection{{name: "plain"}}}}
	p.maxPartitions, p.wants, p.crowd, p.batch = 0, nil, 0, 100
	p.network, p.drift = network{latency: time.Millisecond, hints: 1000}, 0
	p.handlers = handlers{typical: 100 * time.Millisecond}
	p.length = 32 * time.Second
	p.appends = appends{every: 50 * time.Millisecond, aggregates: 200}
	p.workers, p.faults = make([]time.Duration, 5), nil
	for at := 8 * time.Second; at < p.length; at += 2 * time.Second {
		p.faults = append(p.faults, fault{at: at + between(r, 0, time.Second), kind: endSessionCutOff, worker: r.IntN(1000), length: 2 * time.Second})
	}
}

// addProgram draws the next version of the program. It drops some projections, adds others,
// and moves others to another replica set. Each set keeps one of its own. With uneven, its
// timing settings differ too.
func (p *plan) addProgram(r *rand.Rand, uneven bool) {
	all := []projection{
		{name: "plain", kind: protocol.Plain}, {name: "tx", kind: protocol.Transactional}, {name: "batch", kind: protocol.Batched},
	}
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	next := program{timing: p.timing, projections: all[:1+r.IntN(len(all))]}
	version := len(p.programs)
	if version > 0 {
		next.projections = append(next.projections, projection{name: fmt.Sprint("new", version), kind: pick(r, protocol.Plain, protocol.Transactional, protocol.Batched)})
	}
	for i := range next.projections {
		next.projections[i].set = i % p.sets
	}
	for set := range p.sets - 1 {
		next.projections = append(next.projections, projection{name: fmt.Sprint("own", set+1), set: set + 1})
	}
	if uneven && version > 0 {
		scale := pick(r, 1, 2, 4)
		t := &next.timing
		t.Heartbeat = pick(r, t.Heartbeat/2, t.Heartbeat, 2*t.Heartbeat)
		t.Lease = max(t.Lease*time.Duration(scale)/2, 3*t.Heartbeat)
		t.Drain = pick(r, t.Lease/2, t.Lease)
	}
	p.programs = append(p.programs, next)
}

// ordinaryFeed reads and keeps as much as there will ever be.
var ordinaryFeed = protocol.FeedConfig{Page: 1000, Bytes: 1 << 20}

// drawReading draws how much is read at once and kept, and which projections have scopes.
func (p *plan) drawReading(r *rand.Rand) {
	p.feed = protocol.FeedConfig{Page: pick(r, 1, 3, 10, ordinaryFeed.Page), Bytes: pick(r, 1, 100, 1000, 10_000, ordinaryFeed.Bytes)}
	scopes, drawn := []scope{"", "", "", "", "order", "order", "parcel", "order refund", "/made", "order/moved", "order refund/made"}, map[string]scope{}
	for _, v := range p.programs {
		for i := range v.projections {
			q := &v.projections[i]
			if _, known := drawn[q.name]; !known {
				drawn[q.name] = pick(r, scopes...)
			}
			q.scope = drawn[q.name]
		}
	}
}

// drawParking draws which projections park events, and which events fail.
func (p *plan) drawParking(r *rand.Rand) {
	p.maxParked, p.operate = pick(r, 2, 10, 1000), pick(r, p.timing.Heartbeat/2, p.timing.Heartbeat, p.timing.Heartbeat, p.timing.Lease)
	p.mended = between(r, 0, p.length*3/2)
	p.handlers.poison = pick(r, 0, 20, 100)
	drawn := map[string]int{}
	for _, v := range p.programs {
		for i := range v.projections {
			q := &v.projections[i]
			if _, known := drawn[q.name]; !known {
				drawn[q.name] = pick(r, 0, 0, 1, 2, 3)
			}
			q.parks = drawn[q.name]
		}
	}
	if !p.parks() {
		return
	}
	lease := p.timing.Lease
	for range pick(r, 0, 1, 3) {
		p.faults = append(p.faults, fault{at: between(r, 0, p.length), kind: freezeAtPark, worker: r.IntN(1000),
			length: pick(r, lease/2, 2*lease, 4*lease).Truncate(time.Microsecond)})
	}
	for range pick(r, 0, 1, 3) {
		p.faults = append(p.faults, fault{at: between(r, 0, p.length), kind: delayPark, worker: r.IntN(1000), length: between(r, 0, 50*time.Millisecond)})
	}
	p.sortFaults()
}

// drawOrderParks draws how often operators order events parked.
func (p *plan) drawOrderParks(r *rand.Rand) {
	if !chance(r, 200) {
		return
	}
	p.orderParks = pick(r, p.timing.Heartbeat/2, p.timing.Heartbeat, 3*p.timing.Heartbeat)
	p.handlers.poison = max(p.handlers.poison, pick(r, 5, 20, 100))
}

// drawBatches draws which plain projections take several events at once.
func (p *plan) drawBatches(r *rand.Rand) {
	drawn := map[string]protocol.LaneKind{}
	for _, v := range p.programs {
		for i := range v.projections {
			q := &v.projections[i]
			if q.kind != protocol.Plain {
				continue
			}
			if _, known := drawn[q.name]; !known {
				drawn[q.name] = pick(r, protocol.Plain, protocol.Plain, protocol.PlainBatched)
			}
			q.kind = drawn[q.name]
		}
	}
}

// drawUnreadable draws which events can't be read, and for how long. They stay unreadable
// only if no projection stops at them.
func (p *plan) drawUnreadable(r *rand.Rand) {
	p.unreadable, p.rewritten = pick(r, 0, 0, 0, 20, 100), between(r, time.Millisecond, p.length*3/2)
	if chance(r, 300) && !p.stopOnFailure {
		p.rewritten = 0
	}
}

// unread reports whether an event is unreadable.
func (p *plan) unread(e event) bool {
	return int(uint32(uint64(e.position)*0xD6E8FEB86659FD93>>32)%1000) < p.unreadable
}

// parks reports whether a projection parks events.
func (p *plan) parks() bool {
	return slices.ContainsFunc(p.programs, func(v program) bool {
		return slices.ContainsFunc(v.projections, func(q projection) bool { return q.parks > 0 })
	})
}

// drawTable draws what happens to the events table and its writers.
func (p *plan) drawTable(r *rand.Rand) {
	p.appends.first, p.appends.savepoint = rate(r, 300), rate(r, 100)
	lease := p.timing.Lease
	for _, k := range []faultKind{misroute, cacheNumbers, stranger} {
		n := pick(r, 0, 0, 0, 0, 1, 2)
		if k == misroute {
			n *= 3
		}
		for range n {
			f := fault{at: between(r, 0, p.length), kind: k, worker: r.IntN(1000)}
			if k != stranger {
				f.length = pick(r, lease/4, lease, 2*lease).Truncate(time.Microsecond)
			}
			p.faults = append(p.faults, f)
		}
	}
	p.sortFaults()
}

func (p *plan) drawFaults(r *rand.Rand, uneven bool) {
	lease := p.timing.Lease
	var rates [revoke + 1]int
	for k := range rates {
		rates[k] = pick(r, 0, 0, 0, 1, 3)
	}
	rates[deploy] = min(rates[deploy], 1)
	if p.sets > 1 || uneven {
		rates[deploy] = 1 + r.IntN(2)
	}
	for k, n := range rates {
		for range n {
			f := fault{at: between(r, 0, p.length), kind: faultKind(k), worker: r.IntN(1000)}
			switch f.kind {
			case crash:
				f.length = pick(r, 0, lease/4, lease, 2*lease)
			case leave:
				f.length = pick(r, 0, lease/4, lease)
			case freeze, freezeAtCommit, freezeInHandler, cutOff:
				f.length = pick(r, lease/10, lease/2, lease, 2*lease, 4*lease)
			case congestion:
				f.length = pick(r, lease, 2*lease)
			case databaseDown:
				f.length = pick(r, time.Millisecond, lease/4, lease, 2*lease)
			case revoke:
				f.length = pick(r, lease/4, lease)
			case clockStep:
				f.length = pick(r, lease/4, lease, 10*lease, -lease/4, -lease, -10*lease)
			case deploy:
				p.addProgram(r, uneven)
			}
			f.length = f.length.Truncate(time.Microsecond)
			p.faults = append(p.faults, f)
		}
	}
	p.sortFaults()
	p.spaceSteps()
}

func (p *plan) sortFaults() {
	slices.SortStableFunc(p.faults, func(a, b fault) int { return cmp.Compare(a.at, b.at) })
}

// drawPresence draws which workers have no liveness connection, and which lose theirs.
func (p *plan) drawPresence(r *rand.Rand) {
	for i := range p.programs {
		p.programs[i].leaseOnly = chance(r, 500)
	}
	lease := p.timing.Lease
	for _, k := range []faultKind{endSession, endSessionCutOff} {
		for range pick(r, 0, 0, 1, 3) {
			f := fault{at: between(r, 0, p.length), kind: k, worker: r.IntN(1000)}
			if k == endSessionCutOff {
				f.length = pick(r, lease/10, lease/4, lease/2, lease, 2*lease).Truncate(time.Microsecond)
			}
			p.faults = append(p.faults, f)
		}
	}
	p.sortFaults()
}

// drawDistance draws what makes workers rely on their leases: a distant database, processes
// that freeze again and again, and connections that can't be opened.
func (p *plan) drawDistance(r *rand.Rand, o options) {
	if o.postgres {
		return
	}
	if p.timing.Heartbeat == 5*time.Second && chance(r, 200) {
		p.network.latency = between(r, 10*time.Millisecond, 125*time.Millisecond)
	}
	for _, k := range []faultKind{blockSession, fakeLocks, stutter} {
		for range pick(r, 0, 0, 0, 1, 2) {
			f := fault{at: between(r, 0, p.length), kind: k, worker: r.IntN(1000)}
			if k == fakeLocks { // so that it matters
				p.faults = append(p.faults, fault{at: f.at + between(r, 0, p.timing.Heartbeat), kind: crash, worker: r.IntN(1000), length: p.timing.Lease})
			} else {
				f.length = pick(r, p.timing.Lease/2, p.timing.Lease, 3*p.timing.Lease).Truncate(time.Microsecond)
			}
			p.faults = append(p.faults, f)
		}
	}
	p.sortFaults()
}

// drawLanes draws lanes that end unreported: late, so that no other change of members is
// likely to heal that.
func (p *plan) drawLanes(r *rand.Rand) {
	for range pick(r, 0, 0, 0, 0, 1, 3) {
		p.faults = append(p.faults, fault{at: between(r, p.length/2, p.length*9/10), kind: endLane, worker: r.IntN(1000)})
	}
	p.sortFaults()
}

// drawVacancies draws which versions of the program have a ReplacementWindow. Then more
// workers leave.
func (p *plan) drawVacancies(r *rand.Rand) {
	if !chance(r, 400) {
		return
	}
	h, lease := p.timing.Heartbeat, p.timing.Lease
	for i := range p.programs {
		p.programs[i].vacate = pick(r, 0, h/2, lease/2, lease/2, lease, lease, 2*lease).Truncate(time.Microsecond)
	}
	leaves := pick(r, 0, 1, 2, 4)
	if chance(r, 200) { // their statements arrive after they have left
		leaves, p.network.slow, p.network.slowBy = 10, 30, lease
	}
	for range leaves {
		p.faults = append(p.faults, fault{at: between(r, 0, p.length), kind: leave, worker: r.IntN(1000), length: pick(r, 0, h/4, lease/4, lease/2, lease).Truncate(time.Microsecond)})
	}
	p.sortFaults()
}

// vacate returns the longest ReplacementWindow.
func (p *plan) vacate() (longest time.Duration) {
	for _, v := range p.programs {
		longest = max(longest, v.vacate)
	}
	return longest
}

// drawStore draws which event store the program has.
func (p *plan) drawStore(r *rand.Rand) {
	if chance(r, 150) {
		p.store = &ownStore{page: pick(r, 1, 3, 10), scopes: chance(r, 300), through: chance(r, 500)}
	}
}

// spaceSteps drops clock steps within a lease of another one: two opposite steps in a short
// time are beyond what the protocol promises.
func (p *plan) spaceSteps() {
	last := -p.timing.Lease * 2
	p.faults = slices.DeleteFunc(p.faults, func(f fault) bool {
		if f.kind != clockStep {
			return false
		}
		if f.at-last < 2*p.timing.Lease {
			return true
		}
		last = f.at
		return false
	})
}

// settle returns how long after the last fault everything must have settled (L1):
//
//   - a worker that is frozen or gone for good holds what it holds for a lease, and the
//     others expire it only after they have watched the database's clock for a lease;
//   - the server ends a transaction that it has left behind after a lease at most;
//   - a handler that does not stop has the time of a drain; then its worker's lease has to
//     end in the same way;
//   - the first set gives up a projection that has moved to another set in the same way,
//     and the second set tries only from time to time;
//   - a parked event stays until an operator asks for it, and may block what is to be
//     parked;
//   - the place of a worker that has left is kept for its window;
//   - then come a join window, a few heartbeats and retries, and the events that are still
//     to be handled.
//
// It does not wait for what can't have happened in a plan.
func (p *plan) settle() time.Duration {
	t := p.slowest()
	backlog := 5 * p.length / p.appends.every
	settle := p.joinWindow + p.vacate() + 10*t.Heartbeat + 2*time.Second + backlog*(2*p.handlers.typical+6*p.network.latency)
	n := p.network
	if len(p.faults) > 0 || n.lostRequest+n.lostReply+n.slow+n.holdCommit > 0 {
		settle += 3*t.Lease + n.slowBy
	}
	if p.sets > 1 && len(p.programs) > 1 {
		settle += 2 * t.Lease
	}
	if n := len(p.orders); n > 0 { // the last orders are lifted, one after the other, when the faults stop
		settle += 3*t.Lease + time.Duration(n+1)*backlog*(2*p.handlers.typical+6*p.network.latency)
	}
	settle += p.settleRebuild(backlog)
	if p.handlers.slow > 0 {
		settle += p.handlers.slowBy + t.Drain + 2*t.Lease
	}
	if p.handlers.fail+p.handlers.panics+p.handlers.spoil+p.handlers.violate > 0 || p.handlers.timeout+p.handlers.kill+p.handlers.chain > 0 {
		settle += p.retry.Max
	}
	if p.parks() {
		settle += p.retry.Max + 8*p.operate + 4*min(p.poll, time.Second) + backlog*(2*p.handlers.typical+12*p.network.latency)
	}
	return settle
}

// wantsOf returns the most partitions of the n-th worker.
func (p *plan) wantsOf(n int) int {
	if len(p.wants) == 0 {
		return 1
	}
	return p.wants[n%len(p.wants)]
}

// slowest returns the longest of all timing settings.
func (p *plan) slowest() protocol.Timing {
	t := p.timing
	for _, q := range p.programs {
		t.Heartbeat, t.Lease, t.Drain = max(t.Heartbeat, q.timing.Heartbeat), max(t.Lease, q.timing.Lease), max(t.Drain, q.timing.Drain)
	}
	return t
}

// uneven reports whether versions of the program differ in their timing settings.
func (p *plan) uneven() bool {
	return slices.ContainsFunc(p.programs, func(q program) bool { return q.timing != p.timing })
}

// scoped reports whether some projections have scopes.
func (p *plan) scoped() bool {
	return slices.ContainsFunc(p.programs, func(v program) bool {
		return slices.ContainsFunc(v.projections, func(q projection) bool { return q.scope != "" })
	})
}

// String describes the plan in a few words.
func (p *plan) String() string {
	var kinds [faultKinds]int
	for _, f := range p.faults {
		kinds[f.kind]++
	}
	var parts []string
	for k, n := range kinds {
		if n > 0 {
			parts = append(parts, fmt.Sprintf("%d× %s", n, faultKind(k)))
		}
	}
	faults := "no faults"
	if len(parts) > 0 {
		faults = strings.Join(parts, ", ")
	}
	text := plural(len(p.workers), "worker")
	if p.sets > 1 {
		text += fmt.Sprintf(" of %d replica sets", p.sets)
	}
	if len(p.wants) > 0 {
		text += fmt.Sprintf(", each with up to %s,", plural(slices.Max(p.wants), "partition"))
	}
	if p.vacate() > 0 {
		text += fmt.Sprintf(", with a replacement window of up to %s,", p.vacate())
	}
	if p.uneven() {
		text += ", with versions that differ in their timing,"
	}
	if p.rebuild != nil {
		text += fmt.Sprintf(", with a rebuild of %s,", p.rebuild.live)
	}
	h := p.handlers
	if len(p.orders) > 0 {
		faults += ", " + plural(len(p.orders), "order")
	}
	for _, about := range []struct {
		rate int
		what string
	}{
		{h.timeout, "handlers that exceed a time limit of the server"}, {h.kill, "handlers that end their connections"},
		{h.chain, "handlers that end their transactions"},
		{h.spoil, "handlers that ignore errors"}, {h.violate, "handlers that break constraints"},
		{min(h.slow, h.deaf, h.outlive), "handlers that outlive their workers"},
	} {
		if about.rate > 0 {
			faults += ", " + about.what
		}
	}
	return fmt.Sprintf("%s for %s; %s", text, p.length, faults)
}

func pick[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

// chance is true in so many of a thousand cases.
func chance(r *rand.Rand, perMille int) bool { return perMille > 0 && r.IntN(1000) < perMille }

// rate draws a rate up to most; zero in half of the cases.
func rate(r *rand.Rand, most int) int {
	if r.IntN(2) == 0 {
		return 0
	}
	return r.IntN(most + 1)
}

// between draws a duration, to the microsecond.
func between(r *rand.Rand, from, to time.Duration) time.Duration {
	if to <= from {
		return from
	}
	return (from + time.Duration(r.Int64N(int64(to-from)))).Truncate(time.Microsecond)
}
