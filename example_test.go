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

// UserCount counts users. Its writes go through the transaction that also
// commits the checkpoint, so each event counts exactly once.
type UserCount struct{}

func (UserCount) Name() string { return "user_count" }

func (UserCount) Handle(context.Context, orchestrator.Event) error {
	panic("not called: UserCount is transactional")
}

func (UserCount) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if e.EventType != "UserRegistered" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE user_count SET n = n + 1`)
	return err
}

// The whole of a worker. Start it as often as you like.
func Example() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if err := orchestrator.RunMigrations(db); err != nil {
		log.Fatal(err)
	}
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		log.Fatal(err)
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB:         db,
		EventStore: events,
		ReplicaSet: "main-projections",
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{UserCount{}}); err != nil {
		log.Fatal(err)
	}
}

// The tables of a read model, made by whichever copy of the program starts first.
func ExampleWithSQL() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	err = orchestrator.Migrate(context.Background(), db, orchestrator.WithSQL(`
CREATE TABLE IF NOT EXISTS user_count (n bigint NOT NULL);
INSERT INTO user_count SELECT 0 WHERE NOT EXISTS (SELECT FROM user_count)`))
	if err != nil {
		log.Fatal(err)
	}
}

// Probes for Kubernetes: livenessProbe /livez, readinessProbe /readyz.
func ExampleHealthHandler() {
	run := func(ctx context.Context, o *orchestrator.Orchestrator[orchestrator.Event]) error {
		probes := &http.Server{Addr: ":8080", Handler: orchestrator.HealthHandler(o), ReadHeaderTimeout: 5 * time.Second}
		go func() { log.Fatal(probes.ListenAndServe()) }()
		return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{UserCount{}})
	}
	_ = run
}

// A page for operators, who may give orders on it. Who is one is for the program to
// say.
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
			http.Error(w, "who are you?", http.StatusUnauthorized)
			return
		}
		page.ServeHTTP(w, r)
	})
	server := &http.Server{Addr: "localhost:8080", ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute}
	log.Fatal(server.ListenAndServe())
}

// An events table of one's own: other names, another event type.
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
