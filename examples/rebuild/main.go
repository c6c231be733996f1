// Command rebuild builds a new version of a read model beside the live one, and switches its
// readers over, while events are being appended.
//
//	go run ./examples/rebuild
//
// The live projection counts the orders of each customer, and sends a mail for each order.
// The new version also keeps which order was the latest. It handles all events again, but
// sends no mail for an order for which the live version has sent one. Readers use a view,
// which changes from the old table to the new one in the transaction that promotes the new
// version.
//
// The workers are goroutines here; in production they are processes. The exit status is 0 if
// each order is in the model once and was mailed once.
//
// With DATABASE_URL set, that database is used, in a schema of its own, which is dropped at
// the end. Otherwise it starts a PostgreSQL.
package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"time"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/examples/internal/stage"
	"github.com/getpup/pupsourcing-orchestrator/ops"
)

// tables are the read model, its view, and what was mailed.
const tables = `
CREATE TABLE customer_orders_v1 (customer text PRIMARY KEY, orders bigint NOT NULL);
CREATE TABLE customer_orders_v2 (customer text PRIMARY KEY, orders bigint NOT NULL, latest bigint NOT NULL);
CREATE VIEW customer_orders AS SELECT customer, orders FROM customer_orders_v1;
CREATE TABLE mails (id bigint GENERATED ALWAYS AS IDENTITY, event bigint NOT NULL);`

// version1 is the live version.
var version1 = orchestrator.Transactional("customer_orders_v1",
	func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		_, err := tx.ExecContext(ctx, `
INSERT INTO customer_orders_v1 AS c VALUES ($1, 1) ON CONFLICT (customer) DO UPDATE SET orders = c.orders + 1`, e.AggregateID)
		if err != nil {
			return err
		}
		return mail(ctx, tx, e)
	})

// version2 will take its place.
var version2 = orchestrator.Transactional("customer_orders_v2",
	func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
		_, err := tx.ExecContext(ctx, `
INSERT INTO customer_orders_v2 AS c VALUES ($1, 1, $2)
    ON CONFLICT (customer) DO UPDATE SET orders = c.orders + 1, latest = excluded.latest`, e.AggregateID, e.GlobalPosition)
		if err != nil {
			return err
		}
		return mail(ctx, tx, e)
	}, orchestrator.WithRebuildOf("customer_orders_v1"))

// mail sends a mail, unless the live version has.
func mail(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if d, _ := orchestrator.DeliveryFrom(ctx); d.Replay == orchestrator.ReplayRebuild {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO mails (event) VALUES ($1)`, e.GlobalPosition)
	return err
}

// switchOver has readers use the new model.
const switchOver = `
CREATE OR REPLACE VIEW customer_orders AS SELECT customer, orders, latest FROM customer_orders_v2`

// work is a worker of a replica set that has one projection.
func work(ctx context.Context, db *sql.DB, events orchestrator.EventStore[orchestrator.Event], set orchestrator.ReplicaSetName, p orchestrator.Projection[orchestrator.Event]) error {
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB:                db,
		EventStore:        events,
		ReplicaSet:        set,
		HeartbeatInterval: 100 * time.Millisecond, // leave it out to get 5s
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{p})
}

func main() { stage.Main("rebuild", run) }

func run(ctx context.Context, out io.Writer) error {
	return stage.Play(ctx, out, "rebuild", tables, rebuild, verify)
}

func rebuild(ctx context.Context, db *sql.DB, out io.Writer) error {
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		return err
	}
	team := stage.NewTeam(ctx)
	defer team.Stop()
	team.Start(func(ctx context.Context) error { return appendOrders(ctx, db) })
	for range 2 {
		team.Start(func(ctx context.Context) error { return work(ctx, db, events, "live", version1) })
	}
	if err := team.Await(db, `SELECT coalesce(sum(orders), 0) > 500 FROM customer_orders`); err != nil {
		return err
	}
	fmt.Fprintln(out, "Version 1 is live and has more than 500 orders. Version 2 starts to catch up.")
	team.Start(func(ctx context.Context) error { return work(ctx, db, events, "next", version2) })
	if err := team.Await(db, `SELECT EXISTS (SELECT FROM orchestrator_projections WHERE name = 'customer_orders_v2')`); err != nil {
		return err
	}
	p, err := ops.Promote(ctx, db, version2.Name(), switchOver)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "Version 2 is live, in place of %s. For %s neither version handled events.\n", p.Replaced, p.Stopped.Round(time.Millisecond))
	return team.Await(db, `
SELECT (SELECT sum(orders) FROM customer_orders) >= (SELECT sum(orders) FROM customer_orders_v1) + 500`)
}

// appendOrders appends events until ctx ends.
func appendOrders(ctx context.Context, db *sql.DB) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := stage.Append(ctx, db, 10, "OrderPlaced"); err != nil && ctx.Err() == nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// verify compares the read model with the mails.
func verify(ctx context.Context, db *sql.DB, out io.Writer) error {
	var handled, mailed, twice int64
	err := db.QueryRowContext(ctx, `
SELECT coalesce((SELECT sum(orders) FROM customer_orders), 0), (SELECT count(DISTINCT event) FROM mails),
       (SELECT count(*) - count(DISTINCT event) FROM mails)`).Scan(&handled, &mailed, &twice)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "Orders in the read model, orders that were mailed, and orders that were mailed twice:")
	fmt.Fprintf(out, "orders=%d mailed=%d mailed_twice=%d\n", handled, mailed, twice)
	if handled == 0 || mailed != handled || twice != 0 {
		return errors.New("an order was not mailed, or was mailed twice")
	}
	return nil
}
