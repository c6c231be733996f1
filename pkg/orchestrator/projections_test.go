package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"testing"

	"github.com/getpup/pupsourcing-orchestrator/internal/rawtx"
	"github.com/getpup/pupsourcing/es"

	root "github.com/getpup/pupsourcing-orchestrator"
)

type called string

func (called) Name() string { return "p" }

func (c called) err() error { return errors.New(string(c)) }

type (
	alone      struct{ called }
	withTx     struct{ called }
	aloneTx    struct{ alone }
	withTxTx   struct{ withTx }
	aloneBatch struct{ alone }
	bothTypes  struct{ withTxTx }
	plainBatch struct{ withTx }
	unfit      struct{ called }
	unnamed    struct{}
)

func (a alone) Handle(context.Context, es.PersistedEvent) error { return a.err() }

// someTx is a Tx.
type someTx struct{ *sql.Tx }

func (someTx) Raw(func(any) error) error { return nil }
func (t someTx) SQLTx(rawtx.Key) *sql.Tx { return t.Tx }

func (w withTx) Handle(context.Context, *sql.Tx, es.PersistedEvent) error { return w.err() }
func (aloneTx) HandleTx(context.Context, Tx, es.PersistedEvent) error     { return errors.New("tx") }
func (withTxTx) HandleTx(context.Context, Tx, es.PersistedEvent) error    { return errors.New("tx") }
func (aloneBatch) HandleBatch(context.Context, Tx, []es.PersistedEvent) error {
	return errors.New("batch")
}
func (bothTypes) HandleBatch(context.Context, Tx, []es.PersistedEvent) error {
	return errors.New("batch")
}
func (plainBatch) HandlePlainBatch(context.Context, []es.PersistedEvent) error {
	return errors.New("plain batch")
}
func (bothTypes) AggregateTypes() []string                      { return []string{"Order"} }
func (bothTypes) BoundedContexts() []string                     { return []string{"sales"} }
func (unfit) Handle(context.Context, *es.Event) error           { return nil }
func (unnamed) Handle(context.Context, es.PersistedEvent) error { return nil }

// The method set of a projection determines how it is called, whatever version of pupsourcing it
// is written for.
func TestTheMethodSetDecides(t *testing.T) {
	for _, test := range []struct {
		why        string
		projection any
		want       string // the called method, or a part of the error
	}{
		{"v1.0: an event alone is handled outside of any transaction", alone{"plain"}, "plain"},
		{"v1.2: with a transaction, in the one that commits the checkpoint", withTx{"sqltx"}, "sqltx in a transaction"},
		{"v1.0, HandleTx goes first", aloneTx{alone{"plain"}}, "tx in a transaction"},
		{"v1.2, HandleTx goes first", withTxTx{withTx{"sqltx"}}, "tx in a transaction"},
		{"v1.0, HandleBatch goes first", aloneBatch{alone{"plain"}}, "batch"},
		{"v1.2, HandleBatch goes before HandleTx", bothTypes{withTxTx{withTx{"sqltx"}}}, "batch"},
		{"v1.2, HandlePlainBatch goes before Handle", plainBatch{withTx{"sqltx"}}, "plain batch"},
		{"another Handle", unfit{"unfit"}, "has no Handle that takes an es.PersistedEvent"},
		{"no name", unnamed{}, "has no method Name"},
		{"nothing", nil, "is nil"},
		{"a nil pointer", (*alone)(nil), "is nil"},
	} {
		t.Run(test.why, func(t *testing.T) {
			got := ""
			switch p, err := translateOne(test.projection); p := p.(type) {
			case nil:
				got = err.Error()
			case root.BatchProjection[es.PersistedEvent]:
				got = p.HandleBatch(t.Context(), someTx{&sql.Tx{}}, nil).Error()
			case root.TransactionalProjection[es.PersistedEvent]:
				got = p.HandleTx(t.Context(), someTx{&sql.Tx{}}, es.PersistedEvent{}).Error() + " in a transaction"
			case root.PlainBatchProjection[es.PersistedEvent]:
				got = p.HandlePlainBatch(t.Context(), nil).Error()
			default:
				got = p.Handle(t.Context(), es.PersistedEvent{}).Error()
			}
			if !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
		})
	}
	p, err := translateOne(bothTypes{})
	if s, ok := p.(root.ScopedProjection[es.PersistedEvent]); err != nil || !ok || s.AggregateTypes()[0] != "Order" || s.BoundedContexts()[0] != "sales" {
		t.Errorf("the scope is lost: %v, %v", p, err)
	}
	p, err = translateOne(startsAfter{withTx{"sqltx"}})
	if s, ok := p.(root.StartingProjection[es.PersistedEvent]); err != nil || !ok || s.StartAt() != StartAfter(7) {
		t.Errorf("the start is lost: %v, %v", p, err)
	}
}

type rebuilds struct{ withTx }

func (rebuilds) RebuildOf() string { return "users" }

// RebuildOf is found as a method and as an option.
func TestRebuildOf(t *testing.T) {
	p, err := translateOne(rebuilds{withTx{"sqltx"}})
	if r, ok := p.(root.RebuildProjection[es.PersistedEvent]); err != nil || !ok || r.RebuildOf() != "users" {
		t.Errorf("what it rebuilds is lost: %v, %v", p, err)
	}
	if p, err = translateOne(withTx{"sqltx"}); err != nil {
		t.Fatal(err)
	}
	if r, ok := root.With(p, WithRebuildOf("users")).(root.RebuildProjection[es.PersistedEvent]); !ok || r.RebuildOf() != "users" {
		t.Error("the option is lost")
	}
}

type startsAfter struct{ withTx }

func (startsAfter) StartAt() Start { return StartAfter(7) }
