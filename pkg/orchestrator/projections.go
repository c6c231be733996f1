package orchestrator

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"

	"github.com/getpup/pupsourcing/es"
	"github.com/getpup/pupsourcing/es/projection"

	root "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/rawtx"
)

// The methods that a projection may have. Handle takes only the event in pupsourcing v1.0 and
// v1.1, and also a transaction since v1.2. The methods are checked at run time, so that this
// module compiles with every v1.
type (
	sqlTxHandler interface {
		Handle(ctx context.Context, tx *sql.Tx, event es.PersistedEvent) error
	}
	txHandler interface {
		HandleTx(ctx context.Context, tx Tx, event es.PersistedEvent) error
	}
	batchHandler interface {
		HandleBatch(ctx context.Context, tx Tx, events []es.PersistedEvent) error
	}
	plainBatchHandler interface {
		HandlePlainBatch(ctx context.Context, events []es.PersistedEvent) error
	}
	named      interface{ Name() string }
	starting   interface{ StartAt() Start }
	rebuilding interface{ RebuildOf() string }
	typed      interface{ EventTypes() []string }
	scope      interface {
		AggregateTypes() []string
		BoundedContexts() []string
	}
)

// translate turns projections into projections of the root package.
func translate(projections []projection.Projection) ([]root.Projection[es.PersistedEvent], error) {
	out := make([]root.Projection[es.PersistedEvent], len(projections))
	for i, p := range projections {
		var err error
		if out[i], err = translateOne(p); err != nil {
			return nil, fmt.Errorf("%w: projections[%d] %w", ErrInvalidConfig, i, err)
		}
	}
	return out, nil
}

// translateOne turns a projection into one of the root package. It takes any value, so that both
// forms of Handle can be tested with either version of pupsourcing.
func translateOne(p any) (root.Projection[es.PersistedEvent], error) {
	if v := reflect.ValueOf(p); !v.IsValid() || v.Kind() == reflect.Pointer && v.IsNil() {
		return nil, errors.New("is nil")
	}
	if c, ok := p.(configured); ok { // before the next case: it may have the root's Handle through its field
		return c.own, c.err
	}
	if own, ok := p.(root.Projection[es.PersistedEvent]); ok { // with its optional methods
		return own, nil
	}
	n, ok := p.(named)
	if !ok {
		return nil, fmt.Errorf("(%T) has no method Name", p)
	}
	t := translated{n}
	switch p := p.(type) {
	case batchHandler:
		return translatedBatch{t, p}, nil
	case txHandler:
		return translatedTx{t, p.HandleTx}, nil
	case plainBatchHandler:
		return translatedPlainBatch{t, p}, nil
	case sqlTxHandler:
		return translatedTx{t, func(ctx context.Context, tx Tx, e es.PersistedEvent) error {
			return p.Handle(ctx, sqlTx(tx), e)
		}}, nil
	}
	return nil, fmt.Errorf("(%T) has no Handle that takes an es.PersistedEvent, alone or after a *sql.Tx", p)
}

// A configured projection has options. Its field makes it a projection.Projection in every v1.
// It runs as own.
type configured struct {
	projection.Projection
	own root.Projection[es.PersistedEvent]
	err error // why it can't run
}

// A translated projection has a Handle that the root package never calls.
type translated struct{ named }

func (translated) Handle(context.Context, es.PersistedEvent) error {
	return errors.New("orchestrator: Handle was called for a projection that has another method for events")
}

func (t translated) AggregateTypes() []string {
	if s, ok := t.named.(scope); ok {
		return s.AggregateTypes()
	}
	return nil
}

func (t translated) BoundedContexts() []string {
	if s, ok := t.named.(scope); ok {
		return s.BoundedContexts()
	}
	return nil
}

func (t translated) EventTypes() []string {
	if s, ok := t.named.(typed); ok {
		return s.EventTypes()
	}
	return nil
}

func (t translated) StartAt() Start {
	if s, ok := t.named.(starting); ok {
		return s.StartAt()
	}
	return Start{}
}

func (t translated) RebuildOf() string {
	if s, ok := t.named.(rebuilding); ok {
		return s.RebuildOf()
	}
	return ""
}

type translatedTx struct {
	translated
	handle func(context.Context, Tx, es.PersistedEvent) error
}

func (t translatedTx) HandleTx(ctx context.Context, tx Tx, e es.PersistedEvent) error {
	return t.handle(ctx, tx, e)
}

type translatedBatch struct {
	translated
	batchHandler
}

type translatedPlainBatch struct {
	translated
	plainBatchHandler
}

// sqlTx returns the *sql.Tx that pupsourcing's Handle takes. A handler that ends it fails, and
// no part of the batch is committed twice.
func sqlTx(tx Tx) *sql.Tx { return rawtx.Of(tx) }
