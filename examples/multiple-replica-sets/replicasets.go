package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
)

// handledTable is the read model of every projection: what it handled, on which worker.
// Nothing in it is unique, so that the check finds an event that was handled again.
const handledTable = `
CREATE TABLE handled (
    replica_set text   NOT NULL,
    projection  text   NOT NULL,
    position    bigint NOT NULL,
    worker      text   NOT NULL,
    generation  bigint NOT NULL,
    partition   int    NOT NULL,
    total       int    NOT NULL
);`

// A handler is a projection that writes down what it handles.
type handler struct{ name, worker string }

func (h handler) Name() string { return h.name }

func (handler) Handle(context.Context, orchestrator.Event) error {
	return errors.New("not called: handler is transactional")
}

func (h handler) HandleTx(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	d, _ := orchestrator.DeliveryFrom(ctx)
	_, err := tx.ExecContext(ctx, `INSERT INTO handled VALUES ($1, $2, $3, $4, $5, $6, $7)`,
		string(d.ReplicaSet), h.name, e.GlobalPosition, h.worker, d.Generation, d.Partition, d.TotalPartitions)
	return err
}

// A replicaSet is the workers of one replica set.
type replicaSet struct {
	team        *stage.Team
	db          *sql.DB
	events      orchestrator.EventStore[orchestrator.Event]
	name        string
	projections []string

	started int
	leave   []context.CancelFunc // the workers that run
}

// scale starts workers, or stops the oldest, until there are n.
func (s *replicaSet) scale(n int) {
	for len(s.leave) < n {
		s.started++
		worker := fmt.Sprintf("%s-%d", s.name, s.started)
		s.leave = append(s.leave, s.team.Start(func(ctx context.Context) error { return s.work(ctx, worker) }))
	}
	for len(s.leave) > n {
		s.leave[0]()
		s.leave = s.leave[1:]
	}
}

// work is a worker of the set.
func (s *replicaSet) work(ctx context.Context, name string) error {
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB: s.db, EventStore: s.events, ReplicaSet: orchestrator.ReplicaSetName(s.name),
		HeartbeatInterval: 100 * time.Millisecond, // leave it out to get 5s
	})
	if err != nil {
		return err
	}
	var projections []orchestrator.Projection[orchestrator.Event]
	for _, p := range s.projections {
		projections = append(projections, handler{p, name})
	}
	return o.Run(ctx, projections)
}
