package orchestrator

import "time"

// Running returns the generation that an Orchestrator's worker runs, 0 for none.
func Running[E any](o *Orchestrator[E]) (generation int64) {
	for _, f := range o.runs.all() {
		generation = max(generation, f.running)
	}
	return generation
}

// Turned returns when the loop of its newest worker has last turned.
func Turned[E any](o *Orchestrator[E]) (last time.Time) {
	for _, f := range o.runs.all() {
		last = f.turned
	}
	return last
}
