package orchestrator

import (
	"context"
	"slices"
	"sync/atomic"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// What a worker reports of projections that are paused. It runs no lane of them, so it reads
// how far they are: when their partitions come to it, and then from time to time, since they
// don't move meanwhile. Without that, all that is known of a projection (its lag, its parked
// events) would be missing in reports and metrics as long as it is paused.

// pausedEvery is how long what was read of paused projections is taken to hold. What can
// change meanwhile is that another version has replaced one.
const pausedEvery = time.Minute

// paused is what a worker knows of the projections that its share does not run.
type paused struct {
	known   atomic.Pointer[pausedLanes]
	reading atomic.Bool
}

type pausedLanes struct {
	generation int64
	at         time.Time
	lanes      []store.PausedLane
}

// pausedNames returns the projections that the share does not run.
func (w *worker[E]) pausedNames() (names []string) {
	if w.run == nil || len(w.run.share.Partitions) == 0 {
		return nil
	}
	for _, name := range w.names {
		if !w.run.share.Runs(name) {
			names = append(names, name)
		}
	}
	return names
}

// readPaused reads how far the paused projections are, if that is due.
func (w *worker[E]) readPaused(now time.Time) {
	names, known := w.pausedNames(), w.paused.known.Load()
	if len(names) == 0 || w.run.over || known != nil && known.generation == w.watch.generation && now.Sub(known.at) < pausedEvery || w.paused.reading.Load() {
		return
	}
	w.paused.reading.Store(true)
	share := w.run.share
	w.busy.Go(func() {
		defer w.paused.reading.Store(false)
		lanes, err := bounded(w.life, w.patience(), func(ctx context.Context) ([]store.PausedLane, error) {
			return w.store.Paused(ctx, names, share.Generation, share.Partitions, share.Total)
		}, nil)
		if err != nil {
			w.log.Debug("cannot read how far paused projections are, trying again", "error", err)
			kept := &pausedLanes{generation: share.Generation} // as of no time, so that it is read again soon
			if known != nil && known.generation == share.Generation {
				kept.lanes = known.lanes
			}
			w.paused.known.Store(kept)
			return
		}
		for i := range lanes {
			if l := &lanes[i]; l.Since.IsZero() {
				l.Since = known.since(l.Projection, now)
			}
		}
		w.paused.known.Store(&pausedLanes{share.Generation, now, lanes})
	})
}

// awaitsPaused reports whether a report is to wait until it is known for the first time how
// far the paused projections are: else their series would be missing for a moment with each
// rebalance.
func (w *worker[E]) awaitsPaused() bool {
	known := w.paused.known.Load()
	return w.paused.reading.Load() && (known == nil || known.generation != w.watch.generation)
}

// since returns since when a projection was seen to be paused: before, or now.
func (p *pausedLanes) since(projection string, now time.Time) time.Time {
	if p != nil {
		for _, l := range p.lanes {
			if l.Projection == projection {
				return l.Since
			}
		}
	}
	return now
}

// reportPaused says how far the paused projections are.
func (w *worker[E]) reportPaused(now time.Time, state WorkerState, reach reach) (reports []LaneReport) {
	known, names := w.paused.known.Load(), w.pausedNames()
	if known == nil || len(names) == 0 || w.run.over && state != WorkerWaiting || known.generation != w.watch.generation {
		return nil
	}
	for _, l := range known.lanes {
		if !slices.Contains(names, l.Projection) {
			continue
		}
		r := LaneReport{
			Projection: l.Projection, Partition: l.Partition, TotalPartitions: w.run.share.Total, Position: l.Position,
			Behind: reach.Behind(l.Position), BehindSeconds: reach.Lag(now, l.Position, time.Time{}).Seconds(),
			State: LanePaused, Since: l.Since, Parked: l.Parked,
		}
		if l.Parked > 0 {
			r.ParkedSeconds = max(0, now.Sub(l.Oldest).Seconds())
		}
		reports = append(reports, r)
	}
	return reports
}
