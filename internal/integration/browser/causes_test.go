package browser

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

const causes = `[...document.querySelectorAll("#verdict .causes > li")]`

// The page names the state in its title, colors the verdict by the worst severity, and lists each
// cause once: the most severe first, in words, with what ends it.
func TestCauses(t *testing.T) {
	for _, c := range []struct {
		scene, title, level, headline string
		causes                        []string // severity and the start of the text
	}{
		{"empty", "○ no worker yet – replica sets", "none", "No worker has run yet.", nil},
		{"calm", "● running – main-projections", "ok", "All is well.", nil},
		{"draining", "◆ rebalancing – main-projections", "note", "Rebalancing main-projections for 1", []string{"info worker " + workers[1] + " has not stopped generation 14"}},
		{"slow-drain", "■ stalled – main-projections", "bad", "1 critical problem.", []string{"critical projection search_index, partition 1 of 3"}},
		{"gap", "■ stalled – main-projections", "bad", "1 critical problem.", []string{"critical an open transaction holds the readers back: backend"}},
		{"parked", "▲ needs attention – main-projections", "warn", "Running, with 2 warnings.", []string{"warning projection order_totals: 296 events are parked", "warning projection user_count: 4 events"}},
		{"paused", "◆ paused – main-projections", "note", "Paused by order.", []string{"info the replica set is paused by order"}},
		{"many", "▲ needs attention – main-projections", "warn", "Running, with 1 warning.", []string{"warning projection search_index, partition 17 of 40"}},
		{"stalled", "■ stalled – main-projections", "bad", "2 critical problems, 2 warnings.", []string{
			"critical main-projections: projection search_index, partition 1 of 3", "critical main-projections: projection order_totals, partition 1 of 3",
			"warning payouts: an open transaction", "warning payouts: projection payouts_order_totals: 5 events", "info payouts: projection payouts_user_count is paused"}},
	} {
		t.Run(c.scene, func(t *testing.T) {
			b := openTab(t)
			s := newScene(t)
			scenes[c.scene](s)
			b.open(serve(t, ops.StatusHandler(s.db)))
			if title := value[string](b, `document.title`); title != c.title {
				t.Errorf("the title is %q, want %q", title, c.title)
			}
			if level := value[string](b, `document.querySelector("#verdict").className`); level != "verdict "+c.level {
				t.Errorf("the verdict is %q, want %s", level, c.level)
			}
			if icon := value[string](b, `document.querySelector("#icon").href`); !strings.Contains(icon, strings.TrimPrefix(value[string](b, `colors[document.querySelector("#verdict").className.split(" ")[1]]`), "#")) {
				t.Errorf("the icon is %s", icon)
			}
			if headline := value[string](b, `document.querySelector("#verdict p").innerText.slice(1)`); !strings.HasPrefix(headline, c.headline) {
				t.Errorf("the headline is %q, want %q", headline, c.headline)
			}
			got := value[[]string](b, causes+`.map(li => li.querySelector(".tag").innerText.slice(1) + " " + li.querySelector("div > p").innerText)`)
			if len(got) != len(c.causes) {
				t.Fatalf("the causes are %q, want %q", got, c.causes)
			}
			for i, want := range c.causes {
				if !strings.HasPrefix(got[i], want) {
					t.Errorf("cause %d is %q, want %q", i, got[i], want)
				}
			}
			if c.level != "ok" && c.level != "none" {
				if green := value[int](b, `document.querySelectorAll("#verdict .ok, h2 .ok").length`); green != 0 {
					t.Error("something is green where something is wrong")
				}
			}
			b.quiet()
		})
	}
}

// A gap is one cause, with its backend and application, what ends it, and under it all stalls that
// it explains, however many workers wait at it.
func TestGap(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	var many []string
	for i := range 40 {
		many = append(many, fmt.Sprintf("ip-10-0-%d-17-%d-%08d", i/4, 4000+i, i))
	}
	s.set("main-projections", many...)
	for k, w := range many {
		s.worker("main-projections", w, k, len(many), "running", func(l *orchestrator.LaneReport) {
			l.Position, l.Behind, l.BehindSeconds, l.State, l.Stalled, l.Since = head-55, 55, 364, "idle", true, time.Now().Add(-6*time.Minute)
		})
		s.gap(w)
	}
	b.open(serve(t, ops.StatusHandler(s.db)))
	if n := value[int](b, causes+`.length`); n != 1 {
		t.Fatalf("%d causes for one gap: %s", n, b.text("#verdict"))
	}
	text := b.text("#verdict li")
	for _, part := range []string{fmt.Sprintf("backend %d (application nightly-report", s.writer), fmt.Sprintf("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %d AND xact_start", s.writer), "6m", "120 effects"} {
		if !strings.Contains(text, part) {
			t.Errorf("it lacks %q: %s", part, text)
		}
	}
	if strings.Contains(text, "partition 3 of 40") {
		t.Error("the effects are not folded")
	}
	if got := value[string](b, `document.querySelector("#verdict a").href`); got != "https://github.com/getpup/pupsourcing-orchestrator/blob/main/docs/operations.md#gap" {
		t.Errorf("what to do is at %s", got)
	}
	b.unfold()
	if n := value[int](b, `document.querySelectorAll("#verdict li li").length`); n != 120 {
		t.Errorf("%d effects, want 120", n)
	}
	// What is stalled is not called idle.
	if text := b.text("[data-key='projections']"); strings.Contains(text, "idle") || !strings.Contains(text, "stalled: behind the open transaction at position 1,204,323") {
		t.Errorf("the projections say %.400s", text)
	}
	// The remedy is copied; without HTTPS or localhost by another way.
	value[any](b, `window.got = []; Object.defineProperty(navigator, "clipboard", {value: {writeText: async text => { got.push(text); }}}); document.querySelector("[data-copy]").click()`)
	b.wait("it is copied", `document.querySelector("[data-copy]").innerText === "Copied" && window.got[0] === document.querySelector("#verdict code").innerText`)
	b.quiet()
}

// A rebalance that takes long because of a handler is one cause, with the handler first.
func TestSlowDrain(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["slow-drain"](s)
	b.open(serve(t, ops.StatusHandler(s.db)))
	b.unfold()
	if text := b.text("#verdict li"); !strings.Contains(text, "handling event") || !strings.Contains(text, "generation 15 waits for it") {
		t.Errorf("the cause is %s", text)
	}
	if phase := value[string](b, `document.querySelector("[data-key='Phase'] dd .tag").className + document.querySelector("[data-key='Phase'] dd").innerText`); phase != "tag warn▲draining for 4 min" {
		t.Errorf("the phase is %q", phase)
	}
	if text := b.text("[data-key='odd workers']"); !strings.Contains(text, "stopping generation 14") || strings.Contains(text, "waiting") {
		t.Errorf("the workers that matter are %s", text)
	}
}

// Parked events stand by projection, error and aggregate: an error once, orders for an
// aggregate or all, and how many are not listed.
func TestParkedGroups(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["parked"](s)
	s.exec(`UPDATE orchestrator_parked SET error = 'another error' WHERE position = 880003`)
	var asked []int64
	h := ops.StatusHandler(s.db, ops.AllowActions(), ops.DescribeEvents(func(_ context.Context, position int64) (ops.EventDescription, error) {
		asked = append(asked, position)
		return ops.EventDescription{Type: "OrderPlaced", Payload: `{"customer": "<b>"}`}, nil
	}))
	b.open(serve(t, h))
	part := `document.querySelector("[data-key='parked'] > [data-key='order_totals']")`
	text := value[string](b, part+`.innerText`)
	for want, n := range map[string]int{"violates check constraint": 1, "another error": 1, "order_totals: 296 events": 1, "200 more are not": 1, "orchestrator park list order_totals": 1, "order-5500 · 3 events": 1, "no such user": 0} {
		if got := strings.Count(text, want); got != n {
			t.Errorf("%q is there %d times, want %d: %s", want, got, n, text)
		}
	}
	if n := value[int](b, part+`.querySelectorAll(".group").length`); n != 9 { // 8 and 1
		t.Errorf("%d groups are shown at first", n)
	}
	b.unfold()
	if groups, rows := value[int](b, part+`.querySelectorAll(".group").length`), value[int](b, part+`.querySelectorAll("tbody tr").length`); groups != 32 || rows != 96 {
		t.Errorf("%d groups and %d events, want 32 and 96", groups, rows)
	}
	// The program is asked for an event only when a reader asks.
	if len(asked) != 0 {
		t.Errorf("the program was asked for %v", asked)
	}
	run(b, "show an event", chromedp.Click(`button[aria-label='Show event 880000']`))
	b.wait("it is shown", part+`.querySelector("pre")?.innerText === '{"customer": "<b>"}'`)

	number := func(query string, args ...any) (n int) {
		t.Helper()
		if err := s.db.QueryRowContext(t.Context(), query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	run(b, "retry an aggregate", chromedp.Click(`button[aria-label='Retry the events of order-5502 in order_totals']`))
	b.wait("it is requested", `document.querySelector("#answer").textContent.includes("requested for 3 events")`)
	if n := number(`SELECT count(*) FROM orchestrator_parked WHERE request = 'retry' AND aggregate_id = 'order-5502'`); n != 3 {
		t.Errorf("%d are to be retried, want 3", n)
	}
	s.exec(`DELETE FROM orchestrator_parked WHERE aggregate_id = 'order-5502'`) // the worker has done it
	b.wait("the page says when it is done", `document.querySelector("#answer").textContent.includes("done, no longer parked")`)
	run(b, "discard an aggregate", chromedp.Click(`button[aria-label='Discard the events of order-5503 in order_totals …']`))
	run(b, "say no", chromedp.Click(`dialog button[value=""]`))
	run(b, "discard all", chromedp.Click(`button[aria-label='Discard all 293 parked events of order_totals …']`))
	b.wait("it asks", `document.querySelector("#ask-title").innerText === "Discard all 293 parked events of order_totals?"`)
	if n := number(`SELECT count(*) FROM orchestrator_parked WHERE request = 'discard'`); n != 0 {
		t.Errorf("%d are discarded without a yes", n)
	}
	run(b, "say yes", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("it is requested", `document.querySelector("#answer").textContent.includes("requested for 293 events")`)
	if n := number(`SELECT count(*) FROM orchestrator_parked WHERE request = 'discard' AND projection = 'order_totals'`); n != 293 {
		t.Errorf("%d are to be discarded, want 293", n)
	}
	b.quiet()
}

// The filter finds projections, workers and states. "/" leads to it.
func TestFilter(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["many"](s)
	b.open(serve(t, ops.StatusHandler(s.db)))
	value[any](b, `document.body.dispatchEvent(new KeyboardEvent("keydown", {key: "/", bubbles: true}))`)
	if id := value[string](b, `document.activeElement.id`); id != "filter" {
		t.Errorf("/ leads to %q", id)
	}
	for _, c := range []struct{ text, want string }{
		{"mail", "mailer | 0"},
		{"RETRYING search", "search_index | 0"},
		{"retrying mailer", " | 0"},
		{"ip-10-0-4-17-4017", "search_index audit_log invoices mailer order_totals user_count | 1"},
		{"nothing has this name", " | 0"},
		{"", "search_index audit_log invoices mailer order_totals user_count | 0"}, // and folds again
	} {
		got := value[string](b, fmt.Sprintf(`(() => {
			document.querySelector("#filter").value = %q;
			document.querySelector("#filter").dispatchEvent(new Event("input", {bubbles: true}));
			return [...document.querySelectorAll("[data-key='projections'] > details")].map(d => d.dataset.key).join(" ") + " | " + document.querySelectorAll("[data-key='workers'] tbody tr").length;
		})()`, c.text))
		if got != c.want {
			t.Errorf("%q finds %s, want %s", c.text, got, c.want)
		}
	}
	b.quiet()
}

// Workers stand by host. With all well they are one line.
func TestWorkersByHost(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["many"](s)
	s.exec(`UPDATE orchestrator_workers SET lease_until = now() - interval '3 sec' WHERE id LIKE 'ip-10-0-2-17-4009-%'`)
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
	if n := value[int](b, `document.querySelectorAll("[data-key='workers'] tbody tr").length`); n != 1 {
		t.Errorf("%d workers are shown, want the one whose lease has expired", n)
	}
	if text := b.text("[data-key='well workers'] summary"); text != "39 workers on 10 hosts: ●all running" {
		t.Errorf("of the others it says %q", text)
	}
	b.unfold()
	hosts := value[[]string](b, `[...document.querySelectorAll("[data-key='well workers'] tbody th")].map(th => th.querySelector(".hidden") ? "" : th.innerText).filter(Boolean)`)
	if len(hosts) != 10 || hosts[0] != "ip-10-0-0-17" {
		t.Errorf("the hosts are %q", hosts)
	}
	b.quiet()
}

// The page keeps what the workers report while it is open, and says how throughput and lag change.
func TestThroughput(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	s.set("main-projections", workers...)
	b.open(serve(t, ops.StatusHandler(s.db)))
	if n := value[int](b, `document.querySelectorAll(".spark").length`); n != 0 {
		t.Errorf("%d lines without a sample", n)
	}
	// Three minutes of reports, 5 s apart: 600/s, then 300/s, and more left each minute.
	got := value[string](b, `(() => {
		samples.clear();
		const now = Date.parse(known.replica_sets[0].at);
		for (let i = 36; i >= 0; i--) remember({replica_sets: [{replica_set: "main-projections", partitions: [0, 1].map(partition => ({projection: "user_count", partition, total_partitions: 2,
			position: "9007199254740993", reported_at: new Date(now - i * 5000 + partition * 1000).toISOString(),
			report: {position: (9007199254740993n + BigInt((i > 18 ? (36 - i) * 600 : 18 * 600 + (18 - i) * 300) * 5)).toString(), behind: 1000000 + (36 - i) * 100, behind_seconds: 9}}))}]});
		const {points} = samples.get("main-projections\nuser_count");
		return [points.length, ...[1, 17, 20, 36].map(i => Math.round(points[i].rate)), Math.round(trend(points))].join(" ");
	})()`)
	if got != "37 600 600 300 300 1200" {
		t.Errorf("of %s; want 37 points, 600, 600, 300 and 300 a second, and a lag that grows by 1200 a minute", got)
	}
	for _, c := range []struct{ left, want string }{{"1000 + i * 50", " ↑ 600/min growing"}, {"90000 - i * 50", " ↓ 600/min shrinking, about 2 h left"}, {"0", ""}} {
		got := value[string](b, fmt.Sprintf(`(() => {
			const points = [];
			for (let i = 0; i <= 36; i++) points.push({time: i * 5000, rate: 1, left: %s});
			return trendOf(points)?.textContent ?? "";
		})()`, c.left))
		if got != c.want {
			t.Errorf("a lag of %s is %q, want %q", c.left, got, c.want)
		}
	}
}

// 1,000 workers, 500 partitions and 100,000 parked events make a page of bounded size.
func TestLargeSet(t *testing.T) {
	b := openTab(t)
	now := time.Now().UTC()
	set := ops.ReplicaSetStatus{ReplicaSet: "main", At: now, Generation: 7, Phase: ops.PhaseActive, TotalPartitions: 500, OpenedAt: &now, ActivatedAt: &now, Head: 1 << 40}
	for i := range 1000 {
		w := ops.WorkerStatus{Worker: fmt.Sprintf("host-%d-%d-%08d", i/10, i, i), JoinedAt: now, LastHeartbeat: now, LeaseUntil: now.Add(time.Hour), Alive: true, State: "running", ReportedAt: &now}
		if i < 500 {
			w.Partitions = []int{i}
		}
		set.Workers = append(set.Workers, w)
	}
	for _, name := range []string{"a", "b", "c", "d", "e", "f"} {
		for i := range 500 {
			p := ops.PartitionStatus{Projection: name, Partition: i, TotalPartitions: 500, Generation: 7, Worker: set.Workers[i].Worker, Position: 1<<40 - 5, Parked: 34, ReportedAt: &now,
				Report: &orchestrator.LaneReport{Projection: name, Partition: i, TotalPartitions: 500, Position: 1<<40 - 5, Behind: 5, BehindSeconds: 0.25, State: "handling", Since: now}}
			if name == "c" {
				p.Report.Error, p.Report.Attempts, p.Report.Stalled = "it is broken", 9, true
				set.Waits = append(set.Waits, ops.Wait{Kind: ops.WaitRetry, Severity: ops.SeverityCritical, Projection: name, Partition: &i, Text: fmt.Sprintf("projection c, partition %d: it is broken", i)})
			}
			set.Partitions = append(set.Partitions, p)
		}
	}
	members := map[string][]int{}
	for _, w := range set.Workers {
		members[w.Worker] = w.Partitions
	}
	var history []ops.GenerationRecord
	for i := range 30 {
		history = append(history, ops.GenerationRecord{Generation: int64(30 - i), Reason: "1 joined", TotalPartitions: 500, Members: members, OpenedAt: now, ActivatedAt: &now})
	}
	body, err := json.Marshal(map[string]any{"at": now, "actions": true, "replica_sets": []any{struct {
		ops.ReplicaSetStatus
		History []ops.GenerationRecord `json:"history"`
	}{set, history}}})
	if err != nil {
		t.Fatal(err)
	}
	page := ops.StatusHandler(nil)
	b.open(serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Accept") == "application/json" {
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
			return
		}
		page.ServeHTTP(w, r)
	})))
	b.wait("all of it is counted", `document.querySelector("#verdict").innerText.includes("1,000 workers, 6 projections")`)
	if n := value[int](b, `document.querySelectorAll("*").length`); n > 2000 {
		t.Errorf("%d elements", n)
	}
	if n := value[int](b, causes+`.length`); n != 1 {
		t.Errorf("%d causes for one projection that is broken", n)
	}
	if text := b.text("#verdict"); !strings.Contains(text, "and 499 more like this") {
		t.Errorf("the causes are %s", text)
	}
	t.Logf("%d bytes, %d elements; parsed in %.0f ms, shown in %.0f ms", len(body), value[int](b, `document.querySelectorAll("*").length`),
		value[float64](b, fmt.Sprintf(`(() => { const text = JSON.stringify(known) + %q; const began = performance.now(); exactly(text); return performance.now() - began; })()`, " ")),
		value[float64](b, `(() => { const began = performance.now(); remember(known); show(known); return performance.now() - began; })()`))
	// Also when everything is opened, lists are cut.
	value[any](b, `for (let e; e = document.querySelector("details:not([open]) > summary");) e.click()`)
	if n := value[int](b, `document.querySelectorAll("*").length`); n > 25000 {
		t.Errorf("%d elements with everything open", n)
	}
	b.quiet()
}
