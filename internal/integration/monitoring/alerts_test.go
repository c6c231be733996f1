package monitoring

import (
	"errors"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

func formatFloat(f float64) string { return strconv.FormatFloat(f, 'g', -1, 64) }

// rules returns the alert rules, checked as by promtool check rules.
func rules(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile("../../../prometheus/alerts.yml", false, model.LegacyValidation)
	for _, err := range errs {
		t.Error(err)
	}
	if t.Failed() {
		t.FailNow()
	}
	var all []rulefmt.Rule
	for _, g := range groups.Groups {
		all = append(all, g.Rules...)
	}
	return all
}

// Each alert says what is wrong, leads to the section that says what to do, and is in the README.
func TestAlertsAreComplete(t *testing.T) {
	w := play(t, everything)
	sections := sections(t)
	var got [][2]string
	for _, r := range rules(t) {
		got = append(got, [2]string{r.Alert, r.Labels["severity"]})
		for _, a := range []string{"summary", "description"} {
			if len(r.Annotations[a]) < 20 {
				t.Errorf("%s: its %s is %q", r.Alert, a, r.Annotations[a])
			}
		}
		anchor, ok := strings.CutPrefix(r.Annotations["runbook_url"], operations)
		if heading := sections[anchor]; !ok || heading != r.Alert {
			t.Errorf("%s: its runbook_url is %q, which leads to the heading %q of docs/operations.md", r.Alert, r.Annotations["runbook_url"], heading)
		}
		w.check(t, r.Expr)
	}
	readme, err := os.ReadFile("../../../prometheus/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var want [][2]string
	for _, m := range regexp.MustCompile("(?m)^\\| `(Orchestrator\\w+)` \\| (\\w+) \\|").FindAllStringSubmatch(string(readme), -1) {
		want = append(want, [2]string{m[1], m[2]})
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("README.md and alerts.yml differ (-README +alerts):\n%s", diff)
	}
}

// operations is the page that alerts and panels lead to.
const operations = "https://github.com/getpup/pupsourcing-orchestrator/blob/main/docs/operations.md#"

// sections returns the headings of docs/operations.md by the anchors that GitHub gives them.
func sections(t *testing.T) map[string]string {
	t.Helper()
	page, err := os.ReadFile("../../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	headings := map[string]string{}
	for _, m := range regexp.MustCompile("(?m)^#+ (.*)$").FindAllStringSubmatch(string(page), -1) {
		dropped := regexp.MustCompile("[^a-z0-9 _-]").ReplaceAllString(strings.ToLower(m[1]), "")
		headings[strings.ReplaceAll(dropped, " ", "-")] = m[1]
	}
	return headings
}

// check parses an expression, and has it use what the collector exports.
func (w *world) check(t *testing.T, text string) {
	t.Helper()
	expr, err := parser.ParseExpr(text)
	if err != nil {
		t.Errorf("%s: %v", text, err)
		return
	}
	var known []string // labels of the metrics in the expression
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		s, ok := node.(*parser.VectorSelector)
		if !ok {
			return nil
		}
		name, labels := s.Name, []string{"__name__", "instance", "namespace"}
		for _, suffix := range []string{"_bucket", "_sum", "_count"} {
			if base, cut := strings.CutSuffix(name, suffix); cut && w.types[base] == dto.MetricType_HISTOGRAM {
				name, labels = base, append(labels, "le")
			}
		}
		if _, ok := w.types[name]; !ok {
			t.Errorf("%s: no module exports %s", text, s.Name)
		}
		labels = append(labels, w.labels[name]...)
		for _, m := range s.LabelMatchers {
			if !slices.Contains(labels, m.Name) {
				t.Errorf("%s: %s has no label %s", text, s.Name, m.Name)
			}
		}
		known = append(known, labels...)
		return nil
	})
	parser.Inspect(expr, func(node parser.Node, _ []parser.Node) error {
		if a, ok := node.(*parser.AggregateExpr); ok {
			for _, l := range a.Grouping {
				if !slices.Contains(known, l) {
					t.Errorf("%s: nothing has the label %s", text, l)
				}
			}
		}
		return nil
	})
}

// firing returns the alerts that fire at a time, each once: a series of the expression has been
// there for as long as the rule requires.
func (w *world) firing(t *testing.T, rules []rulefmt.Rule, at time.Duration) []string {
	t.Helper()
	var names []string
	for _, r := range rules {
		pending := w.seriesOf(t, r.Expr, at)
		for d := interval; d <= time.Duration(r.For) && len(pending) > 0; d += interval {
			before := w.seriesOf(t, r.Expr, at-d)
			maps.DeleteFunc(pending, func(series string, _ bool) bool { return !before[series] })
		}
		if len(pending) > 0 {
			names = append(names, r.Alert)
		}
	}
	return names
}

// seriesOf returns the labels of an expression's result at a time.
func (w *world) seriesOf(t *testing.T, expr string, at time.Duration) map[string]bool {
	t.Helper()
	found := map[string]bool{}
	for _, v := range w.eval(t, expr, at) {
		found[v.Metric.String()] = true
	}
	return found
}

// pause has a projection of a process be paused, and lag.
func (p *process) pause(since time.Duration, behindSeconds float64) {
	l := &p.report.Lanes[0]
	l.State, l.Since, l.BehindSeconds = orchestrator.LanePaused, began.Add(since), behindSeconds
}

// every reports whether at is a multiple of d.
func every(d, at time.Duration) bool { return at > 0 && at%d == 0 }

func TestAlerts(t *testing.T) {
	const m = time.Minute
	for _, test := range []struct {
		name    string
		happens story
		at      time.Duration // 0: all the time
		want    []string
	}{
		{"all is well", func(time.Duration, []*process) {}, 0, nil},
		{"a roll-out, a crash, a slow minute, a failure and a retry", func(at time.Duration, p []*process) {
			if at >= 60*m && at < 70*m && every(m, at) {
				p[0].rebalance("1 joined, 1 gone", 50*time.Millisecond)
			}
			if at == 80*m {
				p[1].observer.WorkerExpired(orchestrator.WorkerExpired{Source: p[1].source()})
				p[1].failHandler("orders")
			}
			if at >= 100*m && at < 102*m {
				p[0].report.Lanes[0].BehindSeconds = 400
				p[0].heartbeat(2 * time.Second)
			}
		}, 0, nil},
		{"one partition is stalled", func(at time.Duration, p []*process) {
			p[1].report.Lanes[0].Stalled = at > 100*m
		}, 105 * m, []string{"OrchestratorStalled"}},
		{"it moves again", func(at time.Duration, p []*process) {
			p[1].report.Lanes[0].Stalled = at > 100*m && at < 110*m
		}, 111 * m, nil},
		{"one partition lags, and changes its process meanwhile", func(at time.Duration, p []*process) {
			if at < 90*m {
				return
			}
			i := 0
			if at > 95*m {
				i = 1
				p[1].report.Lanes[0].Partition = 0
			}
			p[i].report.Lanes[0].BehindSeconds = (at - 80*m).Seconds()
		}, 98 * m, []string{"OrchestratorLagging"}},
		{"a rebuild catches up", func(_ time.Duration, p []*process) {
			for _, p := range p {
				p.report.Lanes[1].Rebuild, p.report.Lanes[1].BehindSeconds = true, 1e6
			}
		}, 0, nil},
		{"a live projection lags beside one that is rebuilt", func(_ time.Duration, p []*process) {
			p[0].report.Lanes[0].BehindSeconds, p[0].report.Lanes[1].Rebuild = 1000, true
		}, 20 * m, []string{"OrchestratorLagging"}},
		{"one is paused for half an hour", func(at time.Duration, p []*process) {
			if at > 20*m && at < 50*m {
				p[0].pause(20*m, 100)
				p[1].pause(20*m, 100)
			}
		}, 0, nil},
		{"one is paused and forgotten, and its worker crashes", func(at time.Duration, p []*process) {
			p[0].gone = at > 70*m
			if at > 20*m {
				p[0].pause(20*m, 4000)
				p[1].pause(20*m, 4000)
			}
		}, 90 * m, []string{"OrchestratorLagging", "OrchestratorPausedForLong"}},
		{"one with parked events is paused", func(at time.Duration, p []*process) {
			if at > 20*m {
				p[0].pause(20*m, 100)
			}
			p[0].report.Lanes[0].Parked = 3
		}, 60 * m, []string{"OrchestratorEventsParked"}},
		{"one with parked events, which is paused, has no owner for a moment", func(at time.Duration, p []*process) {
			p[0].pause(0, 100)
			p[0].report.Lanes[0].Parked = 3
			p[0].gone = at == 90*m
		}, 90 * m, []string{"OrchestratorPausedForLong", "OrchestratorEventsParked"}},
		{"a transaction holds a gap open for a minute, again and again", func(at time.Duration, p []*process) {
			if in := at % (10 * m); in <= m {
				p[1].report.Gap = &orchestrator.GapReport{Position: 7, Since: began.Add(at - in)}
			}
		}, 0, nil},
		{"gaps open and close all the time", func(at time.Duration, p []*process) {
			p[1].report.Gap = &orchestrator.GapReport{Position: 7, Since: began.Add(at - 30*time.Second)}
		}, 0, nil},
		{"a transaction holds a gap open", func(at time.Duration, p []*process) {
			if at > 60*m {
				p[1].report.Gap = &orchestrator.GapReport{Position: 7, Since: began.Add(60 * m)}
			}
		}, 63 * m, []string{"OrchestratorGapHeldOpen"}},
		{"one is beyond the end", func(at time.Duration, p []*process) {
			if at > 60*m {
				p[1].report.Lanes[1].State = orchestrator.LaneBeyond
			}
		}, 63 * m, []string{"OrchestratorBeyondEnd"}},
		{"it was beyond the end for a minute", func(at time.Duration, p []*process) {
			if at >= 60*m && at <= 61*m {
				p[1].report.Lanes[1].State = orchestrator.LaneBeyond
			}
		}, 0, nil},
		{"a worker has no connection to spare", func(at time.Duration, p []*process) {
			if at > 60*m {
				p[0].report.LeaseOnly = "the pool has no connection to spare for it"
			}
		}, 80 * m, []string{"OrchestratorCrashDetectionOff"}},
		{"a worker had none for ten minutes", func(at time.Duration, p []*process) {
			if at > 60*m && at < 70*m {
				p[0].report.LeaseOnly = "round trips take too long"
			}
		}, 0, nil},
		{"events are parked all the time, before and after their partition changes its process", func(at time.Duration, p []*process) {
			i := 0
			if at > 90*m {
				i = 1
				p[1].report.Lanes[0].Partition = 0
			}
			p[i].report.Lanes[0].Parked = int(max(0, at-50*m) / (5 * m))
		}, 110 * m, []string{"OrchestratorEventsParked", "OrchestratorDeadLettersGrow"}},
		{"many events were parked, at one time", func(at time.Duration, p []*process) {
			if at > 60*m {
				p[0].report.Lanes[0].Parked = 200
			}
		}, 110 * m, []string{"OrchestratorEventsParked"}},
		{"all workers are gone", func(at time.Duration, p []*process) {
			p[0].gone, p[1].gone = at > 100*m, at > 101*m
		}, 110 * m, []string{"OrchestratorWithoutWorkers"}},
		{"one of two is gone", func(at time.Duration, p []*process) { p[0].gone = at > 100*m }, 0, nil},
		{"no worker can join", func(at time.Duration, p []*process) {
			if at > 100*m {
				p[0].report.State, p[1].report.State = "joining", "joining"
			}
		}, 110 * m, []string{"OrchestratorWithoutWorkers"}},
		{"an event is parked", func(at time.Duration, p []*process) {
			p[0].report.Lanes[0].Parked = 1
		}, 10 * m, []string{"OrchestratorEventsParked"}},
		{"an event fails for ever, retried each half minute", func(at time.Duration, p []*process) {
			if at > 90*m && every(m/2, at) {
				p[0].failHandler("orders")
			}
		}, 105 * m, []string{"OrchestratorProjectionFailing"}},
		{"a handler does not return", func(at time.Duration, p []*process) {
			if at == 100*m {
				p[0].observer.CoordinationTimeout(orchestrator.CoordinationTimeout{Source: p[0].source()})
			}
		}, 101 * m, []string{"OrchestratorCoordinationTimeout"}},
		{"workers die each ten minutes", func(at time.Duration, p []*process) {
			if every(10*m, at) {
				p[1].observer.WorkerExpired(orchestrator.WorkerExpired{Source: p[1].source()})
			}
		}, lasts, []string{"OrchestratorWorkersDie"}},
		{"a process restarts all the time", func(at time.Duration, p []*process) {
			if every(2*m, at) { // a worker opens the generation in which it leaves or joins; the other one activates it
				p[1].opens("1 gone")
				p[0].activates("1 gone", 50*time.Millisecond)
				p[1].restart()
				p[1].opens("1 joined")
				p[0].activates("1 joined", 50*time.Millisecond)
			}
		}, lasts, []string{"OrchestratorRebalancesForever"}},
		{"a rebalance waits for a slow handler", func(at time.Duration, p []*process) {
			if at == 110*m {
				p[0].rebalance("1 joined", 40*time.Second)
			}
		}, 115 * m, []string{"OrchestratorRebalanceSlow"}},
		{"the database is away", func(at time.Duration, p []*process) {
			if at > 110*m {
				for _, p := range p {
					p.observer.Heartbeat(orchestrator.Heartbeat{Source: p.source(), Err: errors.New("failed")})
				}
			}
		}, 118 * m, []string{"OrchestratorHeartbeatsFail"}},
		{"heartbeats are slow", func(at time.Duration, p []*process) {
			if at > 100*m {
				p[1].heartbeat(2 * time.Second)
			}
		}, lasts, []string{"OrchestratorHeartbeatsSlow"}},
		{"calls of the observer were dropped", func(at time.Duration, p []*process) {
			if at == 110*m {
				p[0].observer.Dropped(3)
			}
		}, 115 * m, []string{"OrchestratorMetricsIncomplete"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			w, rules := play(t, test.happens), rules(t)
			from, to := test.at, test.at
			if test.at == 0 {
				from, to = 0, lasts
			}
			for at := from; at <= to; at += m {
				if diff := cmp.Diff(test.want, w.firing(t, rules, at)); diff != "" {
					t.Fatalf("firing at %s (-want +got):\n%s", at, diff)
				}
			}
		})
	}
}
