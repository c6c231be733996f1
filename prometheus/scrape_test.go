package prometheus

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// serve starts a server with the collector's metrics, as a program would.
func serve(t *testing.T, c *Collector) (url string) {
	t.Helper()
	registry := prometheus.NewRegistry()
	registry.MustRegister(c)
	server := httptest.NewServer(promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	t.Cleanup(server.Close)
	return server.URL
}

// scrape gets the metrics, as a Prometheus server would.
func scrape(t *testing.T, url string) map[string]*dto.MetricFamily {
	t.Helper()
	response, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: %s", url, response.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	return families
}

// A metric is a row of the README's table.
type metric struct{ Name, Type, Labels string }

// documented reads the README's table.
func documented(t *testing.T) []metric {
	t.Helper()
	readme, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	var metrics []metric
	line := regexp.MustCompile("(?m)^\\| `(\\w+)` \\| (counter|gauge|histogram) \\| ([a-z_, ]*) \\|")
	for _, m := range line.FindAllStringSubmatch(string(readme), -1) {
		metrics = append(metrics, metric{m[1], m[2], m[3]})
	}
	return metrics
}

// A scrape contains exactly the metrics in the README.
func TestScrape(t *testing.T) {
	c := NewCollector()
	feed(c.Observer(), "w1", "2 joined, 1 gone", errors.New("failed"))
	families := scrape(t, serve(t, c))
	var got []metric
	for full, f := range families {
		short, ours := strings.CutPrefix(full, "pupsourcing_orchestrator_")
		if !ours {
			t.Errorf("%s is not named pupsourcing_orchestrator_", full)
		}
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", full)
		}
		var labels []string
		for _, l := range f.Metric[0].Label {
			labels = append(labels, l.GetName())
		}
		got = append(got, metric{short, strings.ToLower(f.GetType().String()), strings.Join(sorted(labels), ", ")})
	}
	want := documented(t)
	for i := range want {
		want[i].Labels = strings.Join(sorted(strings.FieldsFunc(want[i].Labels, func(r rune) bool { return r == ',' || r == ' ' })), ", ")
	}
	byName := func(a, b metric) int { return strings.Compare(a.Name, b.Name) }
	slices.SortFunc(got, byName)
	slices.SortFunc(want, byName)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("README.md and a scrape differ (-README +scrape):\n%s", diff)
	}
	// Names that users' dashboards use.
	for _, n := range strings.Fields(`generations_total workers worker_state current_generation_partitions
		coordination_duration_seconds coordination_timeouts_total heartbeat_failures_total heartbeat_latency_seconds
		stale_workers_total events_processed_total events_skipped_total projection_errors_total events_parked
		batch_duration_seconds fenced_commits_total lag_events lag_seconds stalled`) {
		if families[name(n)] == nil {
			t.Errorf("%s is missing", n)
		}
	}
}

func sorted(s []string) []string {
	s = slices.Clone(s)
	slices.Sort(s)
	return s
}

// Each thing is counted in its metric, and in no other.
func TestCounted(t *testing.T) {
	c := NewCollector()
	feed(c.Observer(), "w1", "2 joined, 1 gone", errors.New("failed"))
	feed(c.Observer(), "w1", "pause of orders", errors.New("failed"))
	families := scrape(t, serve(t, c))
	for _, want := range []struct {
		name   string
		labels string
		value  float64 // of a histogram, the sum
		count  uint64
	}{
		{"generations_total", `reason="joined,gone"`, 1, 0},
		{"generations_total", `reason="pause"`, 1, 0},
		{"generations_total", `reason="gone"`, 0, 0},
		{"coordination_duration_seconds", ``, .06, 2},
		{"coordination_timeouts_total", ``, 2, 0},
		{"heartbeat_failures_total", ``, 2, 0},
		{"heartbeat_latency_seconds", ``, .004, 2},
		{"stale_workers_total", ``, 2, 0},
		{"events_processed_total", `projection="orders"`, 14, 0},
		{"events_skipped_total", `projection="orders"`, 10, 0},
		{"projection_errors_total", `projection="orders"`, 2, 0},
		{"batch_duration_seconds", `projection="orders"`, .04, 2},
		{"fenced_commits_total", `projection="orders"`, 2, 0},
		{"observer_dropped_total", ``, 2, 0},
	} {
		m := find(families[name(want.name)], want.labels)
		if m == nil {
			t.Errorf("no %s{%s}", want.name, want.labels)
			continue
		}
		value := m.GetCounter().GetValue() + m.GetHistogram().GetSampleSum()
		if value < want.value-1e-9 || value > want.value+1e-9 || m.GetHistogram().GetSampleCount() != want.count {
			t.Errorf("%s{%s} is %v, count %d; want %v, count %d", want.name, want.labels,
				value, m.GetHistogram().GetSampleCount(), want.value, want.count)
		}
	}
}

// find returns the metric with a label, written as in an expression.
func find(f *dto.MetricFamily, label string) *dto.Metric {
	for _, m := range f.GetMetric() {
		if label == "" {
			return m
		}
		for _, l := range m.Label {
			if l.GetName()+"="+`"`+l.GetValue()+`"` == label {
				return m
			}
		}
	}
	return nil
}

// Names and types follow Prometheus's conventions.
func TestLint(t *testing.T) {
	c := NewCollector()
	feed(c.Observer(), "w1", "1 joined", errors.New("failed"))
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	problems, err := testutil.GatherAndLint(registry)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

// A name may contain characters that end a label, a line or a string elsewhere.
func TestOddNames(t *testing.T) {
	c := NewCollector()
	r := report("w1", 1, 1, 0)
	r.ReplicaSet, r.Lanes[0].Projection = "a \"set\"\\", "{größe}\u2028"
	c.Observer().Reported(r)
	m := find(scrape(t, serve(t, c))[name("stalled")], "projection=\"{größe}\u2028\"")
	if m == nil || find(&dto.MetricFamily{Metric: []*dto.Metric{m}}, "replica_set=\"a \"set\"\\\"") == nil {
		t.Errorf("got %v", m)
	}
}
