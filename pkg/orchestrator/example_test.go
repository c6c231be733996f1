//go:build !pupsourcing12

package orchestrator_test

import (
	"context"
	"database/sql"
	"errors"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/adapters/postgres"
	"github.com/getpup/pupsourcing/es/projection"
	_ "github.com/lib/pq"

	orchestrator "github.com/getpup/pupsourcing-orchestrator/pkg/orchestrator"
)

// UserProjection counts users. Its writes commit together with the checkpoint, so each event
// counts exactly once.
type UserProjection struct{}

func (*UserProjection) Name() string { return "users" }

// Handle makes UserProjection a projection of pupsourcing. It is never called.
func (*UserProjection) Handle(context.Context, es.PersistedEvent) error {
	panic("not called: UserProjection is transactional")
}

func (*UserProjection) HandleTx(ctx context.Context, tx orchestrator.Tx, e es.PersistedEvent) error {
	if e.EventType != "UserRegistered" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `UPDATE user_count SET n = n + 1`)
	return err
}

// A complete worker. Start it as often as you like.
func Example() {
	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		log.Fatal(err)
	}
	if err := orchestrator.RunMigrations(db); err != nil {
		log.Fatal(err)
	}
	eventStore := postgres.NewStore(postgres.DefaultStoreConfig())
	orch, err := orchestrator.New(orchestrator.Config{
		DB:         db,
		EventStore: eventStore,
		ReplicaSet: "main-projections",
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	projections := []projection.Projection{&UserProjection{}}
	err = orch.Run(ctx, projections)
	if err != nil && !errors.Is(err, context.Canceled) {
		log.Fatal(err)
	}
}
