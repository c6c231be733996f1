package monitoring

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// everything makes everything happen all the time.
func everything(at time.Duration, p []*process) {
	for _, p := range p {
		s := p.source()
		for i, projection := range projections {
			l := &p.report.Lanes[i]
			l.Stalled, l.BehindSeconds, l.Parked, l.ParkedSeconds = true, 100, 2, 50
			p.failHandler(projection)
			p.observer.CommitRefused(orchestrator.CommitRefused{Source: s, Lane: p.lane(projection)})
		}
		p.report.Lanes[1].State, p.report.Lanes[1].Since = orchestrator.LanePaused, began.Add(at-time.Hour)
		p.report.Lanes[0].State = orchestrator.LaneBeyond
		p.report.Gap, p.report.LeaseOnly = &orchestrator.GapReport{Since: began.Add(at - time.Minute)}, "it is so"
		p.rebalance("1 joined", time.Second)
		p.rebalance("1 gone", time.Second)
		p.observer.Heartbeat(orchestrator.Heartbeat{Source: s, Err: errors.New("failed")})
		p.observer.WorkerExpired(orchestrator.WorkerExpired{Source: s})
		p.observer.CoordinationTimeout(orchestrator.CoordinationTimeout{Source: s})
		p.observer.Dropped(1)
	}
}

type panel struct {
	ID          int
	Type        string
	Title       string
	Description string
	GridPos     struct{ X, Y, W, H int }
	Targets     []struct{ Expr, LegendFormat string }
	Links       []struct{ Title, URL string }
	FieldConfig struct {
		Defaults struct {
			Unit       string
			NoValue    string
			Thresholds struct {
				Steps []struct {
					Color string
					Value *float64
				}
			}
		}
	}
}

type dashboard struct {
	Panels     []panel
	Links      []struct{ Title, URL string }
	Templating struct {
		List []struct{ Name, Type, Definition string }
	}
}

func readDashboard(t *testing.T) (d dashboard) {
	t.Helper()
	text, err := os.ReadFile("../../../prometheus/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// expand puts in the variables of an expression what Grafana would, of everything.
func expand(expr, rateInterval, span string) string {
	return strings.NewReplacer("$namespace", ".*", "$replica_set", ".*", "$__rate_interval", rateInterval, "$__range", span).Replace(expr)
}

// Each panel queries exported metrics, and shows something if everything happens.
func TestDashboard(t *testing.T) {
	dashboard := readDashboard(t)
	w := play(t, everything)
	sections := sections(t)

	variables := map[string]string{}
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = v.Type
		if query, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
			metric, label, _ := strings.Cut(strings.TrimSuffix(query, ")"), ", ")
			w.check(t, "count by ("+label+") ("+expand(metric, "", "")+")")
		}
	}
	want := map[string]string{"datasource": "datasource", "namespace": "query", "replica_set": "query", "status_url": "textbox"}
	if diff := cmp.Diff(want, variables); diff != "" {
		t.Errorf("variables (-want +got):\n%s", diff)
	}

	var rows []string
	ids := map[int]bool{}
	for i, p := range dashboard.Panels {
		if ids[p.ID] {
			t.Errorf("%s: the id %d is used twice", p.Title, p.ID)
		}
		ids[p.ID] = true
		if p.Type == "row" {
			rows = append(rows, p.Title)
			continue
		}
		if len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		if !strings.HasSuffix(p.Description, ".") {
			t.Errorf("%s: its description is %q", p.Title, p.Description)
		}
		if len(p.Links) != 2 || p.Links[1].URL != "${status_url}" {
			t.Errorf("%s: its links are %v", p.Title, p.Links)
		} else if anchor, ok := strings.CutPrefix(p.Links[0].URL, operations); !ok || sections[anchor] == "" {
			t.Errorf("%s: its link %s leads to no section of docs/operations.md", p.Title, p.Links[0].URL)
		}
		for _, other := range dashboard.Panels[:i] {
			a, b := p.GridPos, other.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, other.Title)
			}
		}
		for _, target := range p.Targets {
			expr := expand(target.Expr, "2m", "1h")
			if !strings.Contains(target.Expr, `namespace=~"$namespace"`) {
				t.Errorf("%s shows all namespaces: %s", p.Title, target.Expr)
			}
			w.check(t, expr)
			if t.Failed() {
				continue
			}
			values := w.eval(t, expr, lasts)
			if len(values) == 0 {
				t.Errorf("%s is empty: %s", p.Title, expr)
			}
			positive := 0
			for _, v := range values {
				if v.F > 0 {
					positive++
				}
			}
			if positive == 0 || positive < len(values) && p.Type != "heatmap" { // which has empty buckets
				t.Errorf("%s shows %v: %s", p.Title, values, expr)
			}
		}
	}
	if got, want := strings.Join(rows, ", "), "What is wrong now, Throughput, Rebalances, Heartbeats"; got != want {
		t.Errorf("rows: %s, want %s", got, want)
	}
}
