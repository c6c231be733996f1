package orchestrator_test

import (
	"context"
	"database/sql"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// must is for examples.
func must(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

// A whole worker. Start as many copies of it as you like.
func Example() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	must(err)
	must(orchestrator.RunMigrations(db))
	events, err := orchestrator.NewEventTable(db, "events")
	must(err)
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: db, EventStore: events, ReplicaSet: "read-models",
	})
	must(err)
	users := orchestrator.Transactional("users", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		_, err := tx.ExecContext(ctx, `INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING`, e.AggregateID)
		return err
	}, orchestrator.WithScope(orchestrator.Scope{EventTypes: []string{"UserRegistered"}}))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	must(o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{users}))
}

// The tables of a read model, created by the copy of the program that starts first.
func ExampleWithSQL() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	err = orchestrator.Migrate(context.Background(), db, orchestrator.WithSQL(`
CREATE TABLE IF NOT EXISTS users (id text PRIMARY KEY)`))
	if err != nil {
		log.Fatal(err)
	}
}

// Probes for Kubernetes: livenessProbe /livez, readinessProbe /readyz.
func ExampleHealthHandler() {
	run := func(ctx context.Context, o *orchestrator.Orchestrator[orchestrator.Event], projections []orchestrator.Projection[orchestrator.Event]) error {
		probes := &http.Server{Addr: ":8080", Handler: orchestrator.HealthHandler(o), ReadHeaderTimeout: 5 * time.Second}
		go func() { log.Fatal(probes.ListenAndServe()) }()
		return o.Run(ctx, projections)
	}
	_ = run
}

// A status page on which operators may give orders. The program decides who is one.
func ExampleStatusHandler() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	page := ops.StatusHandler(db, ops.AllowActions())
	http.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "operator" || password == "" || password != os.Getenv("OPERATOR_PASSWORD") {
			w.Header().Set("WWW-Authenticate", `Basic realm="operators"`)
			http.Error(w, "not authorized", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})
	server := &http.Server{Addr: "localhost:8080", ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

// An events table of your own: other names, another event type.
func ExampleNewTable() {
	type Payment struct {
		ID     int64
		Amount int64
	}
	db, err := sql.Open("postgres", "postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	payments, err := orchestrator.NewTable(db, orchestrator.TableConfig[Payment]{
		Schema:            "billing",
		Table:             "Payments",
		PositionColumn:    "id",
		AggregateIDColumn: "account",
		Columns:           []string{"id", "amount"},
		Fields:            func(p *Payment, dest []any) []any { return append(dest, &p.ID, &p.Amount) },
	})
	if err != nil {
		log.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[Payment]{DB: db, EventStore: payments, ReplicaSet: "payments"})
	fmt.Println(o != nil, err)
	// Output: true <nil>
}
