package orchestratortest_test

import (
	"context"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/orchestratortest"
)

// A Deposit is an event.
type Deposit struct{ Amount int }

// Balances adds up the deposits.
var Balances = orchestrator.Transactional("balances", func(ctx context.Context, tx orchestrator.Tx, d Deposit) error {
	_, err := tx.ExecContext(ctx, `UPDATE balance SET amount = amount + $1`, d.Amount)
	return err
})

// testBalances is a test of the projection. Yours is named TestBalances.
func testBalances(t *testing.T) {
	db := orchestratortest.DB(t)
	if _, err := db.ExecContext(t.Context(), `CREATE TABLE balance AS SELECT 0 AS amount`); err != nil {
		t.Fatal(err)
	}
	orchestratortest.Run(t, db, Balances,
		orchestrator.Record[Deposit]{AggregateID: "alice", Event: Deposit{Amount: 30}},
		orchestrator.Record[Deposit]{AggregateID: "bob", Event: Deposit{Amount: 12}},
	)
	var amount int
	if err := db.QueryRowContext(t.Context(), `SELECT amount FROM balance`).Scan(&amount); err != nil {
		t.Fatal(err)
	}
	if amount != 42 {
		t.Errorf("the balance is %d, want 42", amount)
	}
}

func Example() {
	var t *testing.T // what go test hands to a test
	testBalances(t)
}
