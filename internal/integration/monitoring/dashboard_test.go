package monitoring

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
)

// everything makes everything happen all the time.
func everything(at time.Duration, p []*process) {
	for _, p := range p {
		s := p.source()
		for i, projection := range projections {
			l := &p.report.Lanes[i]
			l.Stalled, l.BehindSeconds, l.Parked = true, 100, 2
			p.failHandler(projection)
			p.observer.CommitRefused(orchestrator.CommitRefused{Source: s, Lane: p.lane(projection)})
		}
		p.rebalance("1 joined", time.Second)
		p.rebalance("1 gone", time.Second)
		p.observer.Heartbeat(orchestrator.Heartbeat{Source: s, Err: errors.New("failed")})
		p.observer.WorkerExpired(orchestrator.WorkerExpired{Source: s})
		p.observer.CoordinationTimeout(orchestrator.CoordinationTimeout{Source: s})
		p.observer.Dropped(1)
	}
}

type panel struct {
	ID      int
	Type    string
	Title   string
	GridPos struct{ X, Y, W, H int }
	Targets []struct{ Expr string }
}

// Each panel queries exported metrics, and shows something if everything happens.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile("../../../prometheus/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels     []panel
		Templating struct {
			List []struct{ Name, Type, Definition string }
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	w := play(t, everything)

	variables := map[string]string{}
	for _, v := range dashboard.Templating.List {
		variables[v.Name] = v.Type
		if query, ok := strings.CutPrefix(v.Definition, "label_values("); ok {
			metric, label, _ := strings.Cut(strings.TrimSuffix(query, ")"), ", ")
			w.check(t, "count by ("+label+") ("+metric+")")
		}
	}
	if variables["datasource"] != "datasource" || variables["replica_set"] != "query" {
		t.Errorf("the variables are %v", variables)
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
		} else if len(p.Targets) == 0 {
			t.Errorf("%s shows nothing", p.Title)
		}
		for _, other := range dashboard.Panels[:i] {
			a, b := p.GridPos, other.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s lies on %s", p.Title, other.Title)
			}
		}
		for _, target := range p.Targets {
			expr := strings.NewReplacer("$replica_set", ".*", "$__rate_interval", "2m", "$__range", "1h").Replace(target.Expr)
			w.check(t, expr)
			if t.Failed() {
				continue
			}
			values := w.eval(t, expr, lasts)
			if len(values) == 0 {
				t.Errorf("%s is empty: %s", p.Title, expr)
			}
			for _, v := range values {
				if !(v.F > 0) {
					t.Errorf("%s shows %v: %s", p.Title, v, expr)
				}
			}
		}
	}
	if got, want := strings.Join(rows, ", "), "What is wrong now, Throughput, Rebalances, Heartbeats"; got != want {
		t.Errorf("rows: %s, want %s", got, want)
	}
}
