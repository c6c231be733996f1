package prometheus

import orchestrator "github.com/getpup/pupsourcing-orchestrator"

// Observer returns an Observer that updates the Collector, for Config.Observer of any number of
// Orchestrators and replica sets.
func (c *Collector) Observer() *orchestrator.Observer {
	return &orchestrator.Observer{
		// Not when it is opened: a worker that joins opens its generation, and so does one that
		// leaves. The counter of a process that has just begun or ends at once shows no increase.
		GenerationActivated: func(e orchestrator.GenerationActivated) {
			c.generations.WithLabelValues(string(e.ReplicaSet), reason(e.Reason)).Inc()
			c.took.WithLabelValues(string(e.ReplicaSet)).Observe(e.Duration.Seconds())
		},
		WorkerJoined: func(e orchestrator.WorkerJoined) { c.initialize(string(e.ReplicaSet), nil) },
		WorkerLeft:   func(e orchestrator.WorkerLeft) { c.forget(workerOf(e.Source)) },
		WorkerExpired: func(e orchestrator.WorkerExpired) {
			c.stale.WithLabelValues(string(e.ReplicaSet)).Inc()
		},
		Heartbeat: func(e orchestrator.Heartbeat) {
			if e.Err != nil {
				c.missedBeats.WithLabelValues(string(e.ReplicaSet)).Inc()
				return
			}
			c.beats.WithLabelValues(string(e.ReplicaSet)).Observe(e.Latency.Seconds())
		},
		CoordinationTimeout: func(e orchestrator.CoordinationTimeout) {
			c.timeouts.WithLabelValues(string(e.ReplicaSet)).Inc()
		},
		BatchCommitted: func(e orchestrator.BatchCommitted) {
			labels := []string{string(e.ReplicaSet), e.Projection}
			c.processed.WithLabelValues(labels...).Add(float64(e.Events))
			c.skipped.WithLabelValues(labels...).Add(float64(e.Skipped))
			c.batches.WithLabelValues(labels...).Observe(e.Duration.Seconds())
		},
		CommitRefused: func(e orchestrator.CommitRefused) {
			c.fenced.WithLabelValues(string(e.ReplicaSet), e.Projection).Inc()
		},
		HandlerFailed: func(e orchestrator.HandlerFailed) {
			c.failures.WithLabelValues(string(e.ReplicaSet), e.Projection).Inc()
		},
		Reported: func(r orchestrator.WorkerReport) {
			c.initialize(string(r.ReplicaSet), r.Lanes)
			c.keep(r)
		},
		Dropped: func(n int) { c.dropped.Add(float64(n)) },
	}
}

// initialize creates counters at 0. To Prometheus, a counter that first appears as 1 has not
// increased, so the first failure would be missed.
func (c *Collector) initialize(set string, lanes []orchestrator.LaneReport) {
	c.timeouts.WithLabelValues(set)
	c.stale.WithLabelValues(set)
	c.beats.WithLabelValues(set)
	c.missedBeats.WithLabelValues(set)
	c.took.WithLabelValues(set)
	for _, why := range []string{"joined", "gone"} { // reasons that repeat without an operator
		c.generations.WithLabelValues(set, why)
	}
	for _, l := range lanes {
		c.processed.WithLabelValues(set, l.Projection)
		c.skipped.WithLabelValues(set, l.Projection)
		c.failures.WithLabelValues(set, l.Projection)
		c.fenced.WithLabelValues(set, l.Projection)
		c.batches.WithLabelValues(set, l.Projection)
	}
}

func (c *Collector) keep(r orchestrator.WorkerReport) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reports[workerOf(r.Source)] = r
}

func (c *Collector) forget(w worker) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.reports, w)
}
