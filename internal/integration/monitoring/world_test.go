// Package monitoring tests the alert rules and the dashboard of the module prometheus with
// Prometheus's own parser and engine.
package monitoring

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/util/annotations"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	metrics "github.com/getpup/pupsourcing-orchestrator/prometheus"
)

const (
	interval = 30 * time.Second // between scrapes, and between evaluations
	lasts    = 2 * time.Hour    // of a story
)

// began is when all stories begin.
var began = time.Unix(1e9, 0)

// A story makes things happen to two processes at a time. A process that is gone is not scraped.
type story func(at time.Duration, p []*process)

var projections = []string{"orders", "search"}

// A process is a worker of the set "main" with one of two partitions.
type process struct {
	name      string
	observer  *orchestrator.Observer
	collector *metrics.Collector
	gone      bool
	report    orchestrator.WorkerReport // as of now
}

func newProcess(name string, partition int) *process {
	c := metrics.NewCollector()
	p := &process{name: name, collector: c, observer: c.Observer()}
	p.report = orchestrator.WorkerReport{Source: p.source(), State: "running", Generation: 1, Partitions: []int{partition}}
	for _, projection := range projections {
		p.report.Lanes = append(p.report.Lanes, orchestrator.LaneReport{Projection: projection, Partition: partition, TotalPartitions: 2})
	}
	p.observer.WorkerJoined(orchestrator.WorkerJoined{Source: p.source()})
	return p
}

// restart makes a process count from 0.
func (p *process) restart() {
	p.collector = metrics.NewCollector()
	p.observer = p.collector.Observer()
	p.observer.WorkerJoined(orchestrator.WorkerJoined{Source: p.source()})
}

func (p *process) source() orchestrator.Source {
	return orchestrator.Source{ReplicaSet: "main", Worker: p.name}
}

func (p *process) lane(projection string) orchestrator.Lane {
	return orchestrator.Lane{Projection: projection, Generation: 1, Partition: p.report.Partitions[0], TotalPartitions: 2}
}

// usual reports a healthy worker.
func (p *process) usual() {
	p.heartbeat(3 * time.Millisecond)
	for _, projection := range projections {
		p.observer.BatchCommitted(orchestrator.BatchCommitted{
			Source: p.source(), Lane: p.lane(projection), Events: 90, Skipped: 110, Duration: 40 * time.Millisecond})
	}
}

func (p *process) heartbeat(latency time.Duration) {
	p.observer.Heartbeat(orchestrator.Heartbeat{Source: p.source(), Latency: latency})
}

func (p *process) rebalance(reason string, took time.Duration) {
	p.opens(reason)
	p.activates(reason, took)
}

func (p *process) opens(reason string) {
	if opened := p.observer.GenerationOpened; opened != nil {
		opened(orchestrator.GenerationOpened{Source: p.source(), Reason: reason})
	}
}

func (p *process) activates(reason string, took time.Duration) {
	p.observer.GenerationActivated(orchestrator.GenerationActivated{Source: p.source(), Reason: reason, Duration: took})
}

func (p *process) failHandler(projection string) {
	p.observer.HandlerFailed(orchestrator.HandlerFailed{Source: p.source(), Lane: p.lane(projection), Err: errors.New("failed")})
}

// A world is what a Prometheus server has scraped.
type world struct {
	series map[string]*promql.Series
	types  map[string]dto.MetricType
	labels map[string][]string // of each metric
	engine *promql.Engine
}

// newWorld returns a world in which nothing was scraped.
func newWorld(t *testing.T) *world {
	w := &world{series: map[string]*promql.Series{}, types: map[string]dto.MetricType{}, labels: map[string][]string{},
		engine: promql.NewEngine(promql.EngineOpts{MaxSamples: 1e7, Timeout: time.Minute})}
	t.Cleanup(func() { w.engine.Close() })
	return w
}

// play scrapes two processes for the duration of the story.
func play(t *testing.T, happens story) *world {
	t.Helper()
	w := newWorld(t)
	processes := []*process{newProcess("a", 0), newProcess("b", 1)}
	for at := time.Duration(0); at <= lasts; at += interval {
		for _, p := range processes {
			for i := range p.report.Lanes {
				l := &p.report.Lanes[i]
				*l = orchestrator.LaneReport{Projection: l.Projection, Partition: l.Partition, TotalPartitions: 2, Behind: 3, BehindSeconds: .1}
			}
			p.report.State, p.report.Gap, p.report.LeaseOnly = "running", nil, ""
			p.report.At = began.Add(at)
			if !p.gone {
				p.usual()
			}
		}
		happens(at, processes)
		for _, p := range processes {
			if !p.gone {
				p.observer.Reported(p.report)
			}
			w.scrape(t, p, at)
		}
	}
	return w
}

// scrape stores the samples of a process, and marks series that are gone.
func (w *world) scrape(t *testing.T, p *process, at time.Duration) {
	t.Helper()
	now := at.Milliseconds()
	add := func(name string, v float64, pairs []*dto.LabelPair, more ...string) {
		b := labels.NewScratchBuilder(8)
		b.Add("__name__", name)
		b.Add("instance", p.name)
		for _, l := range pairs {
			b.Add(l.GetName(), l.GetValue())
		}
		if len(more) > 0 {
			b.Add(more[0], more[1])
		}
		b.Sort()
		key := b.Labels().String()
		s := w.series[key]
		if s == nil {
			s = &promql.Series{Metric: b.Labels()}
			w.series[key] = s
		}
		s.Floats = append(s.Floats, promql.FPoint{T: now, F: v})
	}
	if !p.gone {
		registry := prometheus.NewPedanticRegistry()
		registry.MustRegister(p.collector)
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			name := f.GetName()
			w.types[name] = f.GetType()
			for _, m := range f.Metric {
				for _, l := range m.Label {
					if !slices.Contains(w.labels[name], l.GetName()) {
						w.labels[name] = append(w.labels[name], l.GetName())
					}
				}
				switch h := m.GetHistogram(); f.GetType() {
				case dto.MetricType_HISTOGRAM:
					for _, b := range h.Bucket {
						add(name+"_bucket", float64(b.GetCumulativeCount()), m.Label, "le", formatFloat(b.GetUpperBound()))
					}
					add(name+"_bucket", float64(h.GetSampleCount()), m.Label, "le", "+Inf")
					add(name+"_sum", h.GetSampleSum(), m.Label)
					add(name+"_count", float64(h.GetSampleCount()), m.Label)
				default:
					add(name, m.GetCounter().GetValue()+m.GetGauge().GetValue(), m.Label)
				}
			}
		}
	}
	for _, s := range w.series {
		if last := s.Floats[len(s.Floats)-1]; s.Metric.Get("instance") == p.name && last.T != now && !value.IsStaleNaN(last.F) {
			s.Floats = append(s.Floats, promql.FPoint{T: now, F: math.Float64frombits(value.StaleNaN)})
		}
	}
}

// eval returns the value of an expression at a time.
func (w *world) eval(t *testing.T, expr string, at time.Duration) promql.Vector {
	t.Helper()
	q, err := w.engine.NewInstantQuery(context.Background(), w, nil, expr, time.UnixMilli(at.Milliseconds()))
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	defer q.Close()
	r := q.Exec(context.Background())
	v, err := r.Vector()
	if err != nil {
		t.Fatalf("%s: %v", expr, err)
	}
	return slices.Clone(v)
}

// Querier implements storage.Queryable.
func (w *world) Querier(mint, maxt int64) (storage.Querier, error) {
	return &storage.MockQuerier{SelectMockFunction: func(_ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
		found := &set{at: -1}
		for _, s := range w.series {
			if !slices.ContainsFunc(matchers, func(m *labels.Matcher) bool { return !m.Matches(s.Metric.Get(m.Name)) }) {
				found.series = append(found.series, promql.NewStorageSeries(*s))
			}
		}
		return found
	}}, nil
}

// A set is a storage.SeriesSet.
type set struct {
	series []storage.Series
	at     int
}

func (s *set) Next() bool                        { s.at++; return s.at < len(s.series) }
func (s *set) At() storage.Series                { return s.series[s.at] }
func (s *set) Err() error                        { return nil }
func (s *set) Warnings() annotations.Annotations { return nil }
