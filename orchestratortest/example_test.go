package orchestratortest_test

import (
	"context"
	"encoding/json"
	"testing"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/orchestratortest"
)

// Balances is a projection of pupsourcing's events: the balance of each account.
var Balances = orchestrator.Transactional("balances", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	var deposit struct{ Amount int }
	if err := json.Unmarshal(e.Payload, &deposit); err != nil {
		return err
	}
	_, err := tx.ExecContext(ctx, `
INSERT INTO balances (account, amount) VALUES ($1, $2)
    ON CONFLICT (account) DO UPDATE SET amount = balances.amount + excluded.amount`, e.AggregateID, deposit.Amount)
	return err
}, orchestrator.WithScope(orchestrator.Scope{AggregateTypes: []string{"Account"}}))

// testBalances is a test of the projection. In your code it is called TestBalances.
func testBalances(t *testing.T) {
	deposit := func(account, payload string) orchestrator.Event {
		return orchestrator.Event{AggregateType: "Account", AggregateID: account, EventType: "Deposited", Payload: []byte(payload)}
	}
	for _, tt := range []struct {
		name   string
		events []orchestrator.Event
		alice  int // her balance
	}{
		{"one deposit", []orchestrator.Event{deposit("alice", `{"Amount": 30}`)}, 30},
		{"two add up", []orchestrator.Event{deposit("alice", `{"Amount": 30}`), deposit("alice", `{"Amount": 12}`)}, 42},
		{"another account's", []orchestrator.Event{deposit("bob", `{"Amount": 12}`)}, 0},
		{"outside of the scope", []orchestrator.Event{{AggregateType: "User", AggregateID: "alice", Payload: []byte("no JSON")}}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			db := orchestratortest.DB(t)
			if _, err := db.ExecContext(t.Context(), `CREATE TABLE balances (account text PRIMARY KEY, amount int NOT NULL)`); err != nil {
				t.Fatal(err)
			}
			orchestratortest.Run(t, db, Balances, orchestratortest.Events(tt.events...)...)
			var alice int
			if err := db.QueryRowContext(t.Context(), `SELECT coalesce(sum(amount), 0) FROM balances WHERE account = 'alice'`).Scan(&alice); err != nil {
				t.Fatal(err)
			}
			if alice != tt.alice {
				t.Errorf("her balance is %d, want %d", alice, tt.alice)
			}
		})
	}
}

// Sent is an event of a type of your own.
type Sent struct{ To string }

// testMailer is a test of a plain projection of your own events. Its effect shows without the
// database.
func testMailer(t *testing.T) {
	for name, tt := range map[string]struct {
		events []orchestrator.Record[Sent]
		want   int
	}{
		"nothing":     {nil, 0},
		"two of them": {[]orchestrator.Record[Sent]{{AggregateID: "a", Event: Sent{"alice"}}, {AggregateID: "b", Event: Sent{"bob"}}}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			mails := 0
			mailer := orchestrator.Plain("mailer", func(ctx context.Context, e Sent) error {
				mails++
				return nil
			})
			orchestratortest.Run(t, orchestratortest.DB(t), mailer, tt.events...)
			if mails != tt.want {
				t.Errorf("%d mails, want %d", mails, tt.want)
			}
		})
	}
}

func Example() {
	var t *testing.T // go test passes it to a test
	testBalances(t)
}

func ExampleRun_plain() {
	var t *testing.T // go test passes it to a test
	testMailer(t)
}
