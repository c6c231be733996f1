package main

import (
	"math"
	"slices"
	"time"
)

// A summary summarizes samples.
type summary struct {
	N      int     `json:"n"`
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	P90    float64 `json:"p90"`
	P99    float64 `json:"p99"`
	High   float64 `json:"high"`
}

func summarize(samples []float64) summary {
	sorted := slices.Sorted(slices.Values(samples))
	n := len(sorted)
	if n == 0 {
		return summary{}
	}
	return summary{
		N: n, Median: (sorted[(n-1)/2] + sorted[n/2]) / 2,
		Low: sorted[0], P90: percentile(sorted, 90), P99: percentile(sorted, 99), High: sorted[n-1],
	}
}

// percentile returns the smallest sample that p percent do not exceed (nearest rank).
func percentile(sorted []float64, p float64) float64 {
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[max(rank, 1)-1]
}

// A row is a line of the result.
type row struct {
	Name    string    `json:"name"`
	Unit    string    `json:"unit"`
	Value   summary   `json:"value"`
	Samples []float64 `json:"samples"`
	// Ratio compares the value with RatioTo, which was measured in turn with it.
	Ratio   *summary `json:"ratio,omitempty"`
	RatioTo string   `json:"ratio_to,omitempty"`
	Goal    string   `json:"goal,omitempty"`
	Met     *bool    `json:"met,omitempty"`
	Note    string   `json:"note,omitempty"`
}

const (
	eventsPerSecond = "events/s"
	milliseconds    = "ms"
)

func newRow(name, unit string, samples []float64) row {
	return row{Name: name, Unit: unit, Value: summarize(samples), Samples: samples}
}

// to compares a row with one that was measured in turn with it, repetition by repetition: so
// disturbances of both cancel out.
func (r row) to(base row) row {
	n := min(len(r.Samples), len(base.Samples))
	ratios := make([]float64, n)
	for i := range ratios {
		ratios[i] = r.Samples[i] / base.Samples[i]
	}
	s := summarize(ratios)
	r.Ratio, r.RatioTo = &s, base.Name
	return r
}

// goal sets the goal of the row.
func (r row) goal(text string, met bool) row {
	r.Goal, r.Met = text, &met
	return r
}

// noted adds a note to the row.
func (r row) noted(note string) row {
	r.Note = note
	return r
}

func millis(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
