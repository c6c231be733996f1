package browser

import (
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/embedpg/pgtest"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// idle is a projection that does nothing.
type idle string

func (p idle) Name() string                                   { return string(p) }
func (idle) Handle(context.Context, orchestrator.Event) error { return nil }

// work starts a worker, which ends with the test at the latest.
func work(t testing.TB, db *sql.DB, projections ...string) (stop func()) {
	t.Helper()
	events, err := orchestrator.NewEventTable(db, "")
	if err != nil {
		t.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: "main",
		HeartbeatInterval: 50 * time.Millisecond, JoinWindow: 20 * time.Millisecond, Logger: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	all := make([]orchestrator.Projection[orchestrator.Event], len(projections))
	for i, name := range projections {
		all[i] = idle(name)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, all) }()
	var stopped atomic.Bool
	stop = func() {
		cancel()
		if stopped.CompareAndSwap(false, true) {
			if err := <-done; ctx.Err() == nil {
				t.Errorf("the worker ended: %v", err)
			}
		}
	}
	t.Cleanup(stop)
	return stop
}

func newDatabase(t testing.TB) *sql.DB {
	t.Helper()
	db, _ := pgtest.Database(t)
	if err := orchestrator.RunMigrations(db); err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), eventtable.Layout); err != nil {
		t.Fatal(err)
	}
	return db
}

const (
	workerRows = `Number(document.querySelector("[data-key='Workers'] dd")?.innerText ?? 0)`
	phase      = `document.querySelector("[data-key='Phase'] dd").innerText`
	generation = `Number(document.querySelector("[data-key='Generation'] dd").innerText)`
)

// The page shows changes without a reload, and keeps what the reader has opened and focused.
func TestLive(t *testing.T) {
	b := openTab(t)
	b.as(looks[2]) // so that there is something to scroll
	db := newDatabase(t)
	b.open(serve(t, ops.StatusHandler(db)))
	b.wait("no worker has run", `document.querySelector("#verdict").innerText.includes("No worker has run yet")`)
	work(t, db, "user_count", "orders")
	b.wait("one worker runs", workerRows+` === 1 && `+phase+`.includes("active")`)

	// The reader has opened one part, and the focus is on another.
	value[any](b, `window.loaded = "once"; document.querySelector("[data-key='user_count'] summary").click();
		document.querySelector("[data-key='orders'] summary").focus(); scrollTo(0, 50)`)
	leave := work(t, db, "user_count", "orders")
	b.wait("two workers run", workerRows+` === 2 && `+generation+` > 1 && `+phase+`.includes("active")`)
	value[any](b, `document.querySelector("[data-key='history'] summary").click()`)
	b.wait("the history tells of it", `document.querySelectorAll("[data-key='history'] tbody tr").length >= 2`)
	if got := value[string](b, `[window.loaded, document.querySelector("[data-key='user_count']").open, document.activeElement.parentElement.dataset.key, scrollY].join(" ")`); got != "once true orders 50" {
		t.Errorf("after an update: %s; want it not reloaded, user_count open, the focus on orders and the page scrolled", got)
	}
	leave()
	b.wait("the other has left", workerRows+` === 1`)
	b.quiet()
}

// The page says in words how far a rebuild is and why a version is stopped, also to screen
// readers.
func TestRebuilding(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["rebuilding"](s)
	url := serve(t, ops.StatusHandler(s.db))
	b.open(url)
	for key, want := range map[string][]string{
		"rebuild_order_totals": {"catching up", "rebuild_order_totals is 301,093 positions behind order_totals, about 2 min left", "in rebuild", "75.0 %", "2,510 positions per second"},
		"rebuild_user_count":   {"takes over", "rebuild_user_count is taking the place of user_count, which is held until", "100.0 %"},
		"search_index":         {"replaced", "search_index was replaced by rebuild_search_index"},
	} {
		text := value[string](b, fmt.Sprintf(`document.querySelector("[data-key='main-projections'] [data-key='rebuilds'] [data-key='%s']").innerText`, key))
		for _, part := range want {
			if !strings.Contains(text, part) {
				t.Errorf("of %s it says %q, want %q", key, text, part)
			}
		}
	}
	for name, want := range map[string]string{"search_index": "replaced by rebuild_search_index", "user_count": "held"} {
		if text := value[string](b, fmt.Sprintf(`document.querySelector("[data-key='projections'] > [data-key='%s'] summary").innerText`, name)); !strings.Contains(text, want) || strings.Contains(text, "paused") {
			t.Errorf("%s: %q, want %q", name, text, want)
		}
	}
	if bars := b.accessibles("progressbar"); !slices.Contains(bars, accessible{"progressbar", "rebuild_order_totals, of order_totals"}) || len(bars) != 4 {
		t.Errorf("bars: %v", bars)
	}
	verdict := b.text("#verdict")
	if !strings.Contains(verdict, "Running, with 1 notice.") || !strings.Contains(verdict, "projection user_count is held while rebuild_user_count takes its place") || strings.Contains(verdict, "search_index") {
		t.Errorf("above all it says %q", verdict)
	}
	for _, l := range looks[:2] {
		b.as(l)
		b.open(url)
		b.unfold()
		for _, bad := range value[[]string](b, contrasts) {
			t.Errorf("%s: %s", l.name, bad)
		}
	}
	b.quiet()
}

// To a screen reader everything has a name.
func TestAccessible(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["stalled"](s)
	url := serve(t, ops.StatusHandler(s.db))
	for _, l := range []look{looks[0], looks[2]} { // on a phone, tables are shown as blocks
		b.as(l)
		b.open(url)
		b.unfold()
		if nameless := slices.DeleteFunc(b.accessibles("table", "columnheader", "rowheader", "region", "heading", "link", "DisclosureTriangle"), func(a accessible) bool { return a.name != "" }); len(nameless) > 0 {
			t.Errorf("%s: without a name: %v", l.name, nameless)
		}
		tables := b.accessibles("table")
		for _, want := range []string{"Workers of payouts, by host", "Parked events of order-5520 in payouts_order_totals", "Generations of payouts, newest first", "Workers of main-projections, by host", "Partitions of search_index"} {
			if !slices.Contains(tables, accessible{"table", want}) {
				t.Errorf("%s: no table is called %q: %v", l.name, want, tables)
			}
		}
		for role, least := range map[string]int{"banner": 1, "main": 1, "contentinfo": 1, "region": 2, "status": 1, "columnheader": 20, "rowheader": 20, "heading": 9} {
			if n := len(b.accessibles(role)); n < least {
				t.Errorf("%s: %d of the role %s, want %d at least", l.name, n, role, least)
			}
		}
	}
	if say := value[string](b, `document.querySelector("#spoken").textContent`); !strings.Contains(say, "2 critical problems, 2 warnings.") {
		t.Errorf("it is read out: %q", say)
	}
	b.quiet()
}

// contrasts returns texts that are hard to read: their contrast to the background is below 4.5
// by WCAG 2.
const contrasts = `(() => {
	const parse = c => { const n = c.match(/[\d.]+/g).map(Number); return n.length > 3 ? n : [...n, 1]; };
	const light = ([r, g, b]) => { const f = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b); };
	const behind = e => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 1) return c; } return [255, 255, 255]; };
	const bad = new Set();
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	for (let n; n = walk.nextNode();) {
		const e = n.parentElement;
		if (!n.data.trim() || e.closest("script, noscript, .hidden")) continue;
		const style = getComputedStyle(e);
		const a = light(parse(e.namespaceURI.endsWith("svg") ? style.fill : style.color)), b = light(behind(e));
		const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
		if (ratio < 4.5) bad.add(e.className + " " + n.data + ": " + ratio.toFixed(2));
	}
	return [...bad];
})()`

func TestContrast(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["stalled"](s)
	url := serve(t, ops.StatusHandler(s.db, ops.AllowActions()))
	for _, l := range looks[:2] {
		b.as(l)
		b.open(url)
		b.unfold()
		for _, bad := range value[[]string](b, contrasts) {
			t.Errorf("%s: %s", l.name, bad)
		}
	}
}

// Markup in names and errors stays text.
func TestEscapes(t *testing.T) {
	const evil = `<script>document.title="evil"</script><img src=x onerror=alert(1)>"'`
	b := openTab(t)
	s := newScene(t)
	s.set("main-projections", evil, "b")
	s.exec(`UPDATE orchestrator_replica_sets SET name = $1, reason = $1`, evil)
	for _, table := range []string{"workers", "reports", "projections", "checkpoints", "history"} {
		s.exec(`UPDATE orchestrator_`+table+` SET replica_set = $1`, evil)
	}
	s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,0,error}', to_jsonb($1::text))`, evil)
	s.exec(`INSERT INTO orchestrator_parked VALUES ('user_count', 1, 0, $1, $1, 1, now())`, evil)
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
	b.wait("the name is shown as it is", fmt.Sprintf(`document.querySelector("h2").firstChild.data === %q`, evil))
	if n := value[int](b, `document.querySelectorAll("img, body script:not(:last-of-type)").length`); n != 0 {
		t.Errorf("%d elements were made from text", n)
	}
	b.unfold()
	if n := value[int](b, `document.querySelectorAll("img, body script:not(:last-of-type)").length`); n != 0 {
		t.Errorf("%d elements were made from text, in what was folded", n)
	}
	if title := value[string](b, `document.title`); title != "▲ needs attention – "+strings.Join(strings.Fields(evil), " ") {
		t.Errorf("the title is %q", title)
	}
	b.quiet()
}

func TestActions(t *testing.T) {
	b := openTab(t)
	db := newDatabase(t)
	work(t, db, "user_count", "orders")

	b.open(serve(t, ops.StatusHandler(db)))
	b.wait("the worker runs", workerRows+` === 1 && `+phase+`.includes("active")`)
	if n := value[int](b, `document.querySelectorAll("[data-order]").length`); n != 0 {
		t.Errorf("%d buttons and fields without actions", n)
	}

	b.open(serve(t, ops.StatusHandler(db, ops.AllowActions())))
	click := func(name string) {
		t.Helper()
		b.wait("there is a button "+name, fmt.Sprintf(`document.querySelector("button[aria-label='%s']")`, name)+` !== null`)
		run(b, "click on "+name, chromedp.Click(fmt.Sprintf("button[aria-label='%s']", name)))
	}
	b.unfold()
	click("Pause user_count")
	b.wait("it is paused", `document.querySelector("[data-key='user_count'] summary").innerText.includes("paused")`)
	b.wait("the answer tells the generation", `/done \(generation [0-9]+\)\./.test(document.querySelector("#answer").textContent)`)
	click("Resume user_count")
	b.wait("it runs", `document.querySelector("[data-key='user_count'] summary").innerText.includes("running")`)

	// What stops everything asks for confirmation.
	click("Pause all projections of main …")
	b.wait("it asks", `document.querySelector("dialog[open] #ask-title")?.innerText === "Pause all projections of main?"`)
	run(b, "cancel", chromedp.Click(`dialog button[value=""]`))
	b.wait("the question is gone", `document.querySelector("dialog") === null`)
	if n := value[int](b, `document.querySelectorAll("[data-key='Order']").length`); n != 0 {
		t.Error("it was paused without a yes")
	}
	click("Pause all projections of main …")
	run(b, "say yes", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("all are paused", `document.querySelector("[data-key='Order']") !== null`)
	b.wait("the page says when it is done", `/^Pause all projections of main: done \(generation [0-9]+\)\.$/.test(document.querySelector("#answer").textContent)`)
	click("Resume all projections of main")
	b.wait("they run", `document.querySelector("[data-key='user_count'] summary").innerText.includes("running")`)

	// So does what can't be undone.
	before := value[int](b, generation)
	click("Rewind orders …")
	b.wait("it asks", `document.querySelector("dialog[open]") !== null`)
	run(b, "cancel", chromedp.Click(`dialog button[value=""]`))
	b.wait("the question is gone", `document.querySelector("dialog") === null`)
	click("Rewind orders …")
	run(b, "say where to", chromedp.SetValue("#ask-position", "12"))
	run(b, "say yes", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("the position is set", `document.querySelector("[data-key='orders'] [data-label='Position']").innerText === "12"`)
	b.wait("by one generation more", fmt.Sprintf(`%s === %d`, generation, before+1))

	// The last worker can't be drained, and the page says so.
	id := value[string](b, `document.querySelector("[data-key='workers'] tbody tr").dataset.key`)
	click("Drain worker " + id)
	b.wait("the refusal is shown", `document.querySelector("#answer.bad") !== null`)
	for _, c := range b.complaints {
		if !strings.Contains(c, "409") { // browsers log it
			t.Errorf("the browser says: %s", c)
		}
	}
}

// A position that JavaScript numbers can't represent is shown and ordered exactly.
func TestLargePositions(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	s.set("main-projections", "w")
	for _, position := range []int64{9007199254740992, 9007199254740993, 9223372036854775807} {
		s.exec(`INSERT INTO orchestrator_parked VALUES ('user_count', $1, 0, 'a', 'it is broken', 1, now())`, position)
	}
	s.exec(`UPDATE orchestrator_checkpoints SET position = 9007199254740993`)
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
	b.unfold()
	b.wait("all of them are shown", `document.querySelectorAll("[data-key='parked'] tbody tr").length === 3`)
	if got := value[string](b, `document.querySelector("[data-key='user_count 9007199254740993'] th").innerText`); got != "9,007,199,254,740,993" {
		t.Errorf("it is shown as %s", got)
	}
	if got := value[string](b, `document.querySelector("details[data-key='user_count'] [data-label='Position']").textContent`); got != "9,007,199,254,740,993" {
		t.Errorf("the checkpoint is shown as %s", got)
	}
	run(b, "retry", chromedp.Click(`button[aria-label='Retry event 9007199254740993 of user_count']`))
	b.wait("it is asked for", `document.querySelector("#answer").textContent.includes("requested for 1 event")`)
	var asked int64
	if err := s.db.QueryRowContext(t.Context(), `SELECT sum(position) FROM orchestrator_parked WHERE request = 'retry'`).Scan(&asked); err != nil || asked != 9007199254740993 {
		t.Errorf("what is to be retried: %d, %v", asked, err)
	}
	run(b, "rewind", chromedp.Click(`button[aria-label='Rewind user_count …']`))
	run(b, "say where to", chromedp.SetValue("#ask-position", "9007199254740995"))
	run(b, "say yes", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("it is to be rewound", `document.querySelector("details[data-key='user_count']").innerText.includes("9,007,199,254,740,995")`)
	b.quiet()
}

// The event at which a handler fails is parked by order, with its exact position, only after a
// name was given.
func TestParkByOrder(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	s.set("main-projections", "w")
	s.exec(`INSERT INTO orchestrator_projections VALUES ('user_count', 'main-projections') ON CONFLICT DO NOTHING`)
	s.exec(`UPDATE orchestrator_checkpoints SET position = 9007199254740993`)
	s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{head}', '9007199254740999')`)
	s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,2}', report #> '{lanes,2}' || '{"position": 9007199254740993, "attempts": 7, "error": "it is broken", "state": "retrying"}')`)
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
	b.unfold()
	const button = `button[aria-label='Park event 9007199254740994 of user_count …']`
	run(b, "park", chromedp.Click(button))
	run(b, "say yes, without a name", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("the name is asked for", `document.querySelector("dialog[open] #ask-by:invalid") !== null`)
	run(b, "say who", chromedp.SetValue("#ask-by", "ann"))
	run(b, "say yes", chromedp.Click(`dialog button[value="yes"]`))
	b.wait("it is ordered", `document.querySelector("#answer").textContent.includes("order 1 was given")`)
	b.wait("the order is shown", `document.querySelector("[data-key='user_count']").innerText.includes("order to park event 9,007,199,254,740,994 is pending")`)
	b.wait("and in the history", `document.querySelector("[data-key='history']").innerText.includes("ann ordered to park event 9,007,199,254,740,994 of user_count: pending")`)
	b.quiet()
}

// Names of properties that every JavaScript object has are names like others.
func TestNamesOfObjects(t *testing.T) {
	names := []string{"__proto__", "constructor", "hasOwnProperty", "toString"}
	b := openTab(t)
	s := newScene(t)
	s.set("main-projections", "w")
	for i, name := range names {
		if i < len(projections) {
			s.exec(`UPDATE orchestrator_checkpoints SET projection = $1 WHERE projection = $2`, name, projections[i])
			s.exec(fmt.Sprintf(`UPDATE orchestrator_reports SET report = jsonb_set(report, '{lanes,%d,projection}', to_jsonb($1::text))`, i), name)
		} else {
			s.exec(`INSERT INTO orchestrator_checkpoints VALUES ($1, 0, 'main-projections', 14, 1, 1, NULL, now())`, name)
		}
	}
	s.exec(`UPDATE orchestrator_reports SET report = jsonb_set(jsonb_set(report, '{state}', '"constructor"'), '{lanes,0,state}', '"toString"')`)
	b.open(serve(t, ops.StatusHandler(s.db, ops.AllowActions())))
	b.wait("they are shown", fmt.Sprintf(`document.querySelectorAll("[data-key='projections'] > details").length === %d`, len(names)))
	b.unfold()
	if text := b.text("#sets"); strings.Contains(text, "native code") || strings.Contains(text, "is pending") {
		t.Errorf("the page says %s", text)
	}
	s.exec(`UPDATE orchestrator_replica_sets SET rewinds = '{"__proto__": 12, "toString": 13}'`)
	for name, want := range map[string]string{"__proto__": "12", "toString": "13"} {
		b.wait("a rewind is shown", fmt.Sprintf(`document.querySelector("[data-key='%s']").innerText.includes("Rewind to position %s is pending")`, name, want))
	}
	if text := b.text("[data-key='constructor']"); strings.Contains(text, "is pending") {
		t.Errorf("the other says %s", text)
	}
	b.quiet()
}

// If a database answers, but reading takes long, the page does not say that it is unreachable.
func TestSlowDatabase(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["calm"](s)
	b.open(serve(t, ops.StatusHandler(s.db)))
	tx, err := s.db.BeginTx(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(t.Context(), `LOCK TABLE orchestrator_checkpoints`); err != nil {
		t.Fatal(err)
	}
	verdict := `document.querySelector("#verdict").innerText`
	b.wait("it is slow", verdict+`.includes("The database has been slow since")`)
	if n := value[int](b, workerRows); n != 3 {
		t.Errorf("%d workers are shown, want the 3 that were known", n)
	}
	tx.Rollback()
	b.wait("it is well again", verdict+`.includes("All is well")`)
}

// The latest known state stays on the page while the database, or the page's server, is
// unreachable.
func TestAway(t *testing.T) {
	b := openTab(t)
	s := newScene(t)
	scenes["calm"](s)
	var away atomic.Bool
	h := ops.StatusHandler(s.db)
	url := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			panic(http.ErrAbortHandler) // ends the connection
		}
		h.ServeHTTP(w, r)
	}))
	verdict := `document.querySelector("#verdict").innerText`
	b.open(url)
	b.wait("all is well", verdict+`.includes("All is well")`)
	away.Store(true)
	b.wait("the server is away", verdict+`.includes("The server of this page has been unreachable since")`)
	away.Store(false)
	b.wait("it is back", verdict+`.includes("All is well")`)
	_ = s.db.Close()
	b.wait("nothing can be read any more", verdict+`.includes("The database could not be read since")`)
	if title := value[string](b, `document.title`); title != "■ unreachable – main-projections" {
		t.Errorf("the title is %q", title)
	}
	if got := value[string](b, `document.querySelector("h2").innerText + getComputedStyle(document.querySelector("#sets")).filter`); !strings.Contains(got, "last known: running") || !strings.Contains(got, "grayscale(1)") {
		t.Errorf("of what was known it says %q", got)
	}
	for _, l := range looks {
		b.as(l)
		b.photograph("away-" + l.name)
	}
	if n := value[int](b, workerRows); n != 3 {
		t.Errorf("%d workers are shown, want the 3 that were known", n)
	}
}
