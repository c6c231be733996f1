package orchestratorotel_test

import (
	"context"
	"database/sql"
	"log"
	"os"
	"os/signal"
	"syscall"

	_ "github.com/lib/pq"
	"go.opentelemetry.io/otel/exporters/stdout/stdoutmetric"
	"go.opentelemetry.io/otel/exporters/stdout/stdouttrace"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	orchestratorotel "github.com/getpup/pupsourcing-orchestrator/otel"
)

// users inserts a row for each user. Spans that the handler starts with ctx are children of the
// call's span.
var users = orchestrator.Transactional("users", func(ctx context.Context, tx orchestrator.Tx, e orchestrator.Event) error {
	if e.EventType != "UserRegistered" {
		return nil
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO users (id, registered_at) VALUES ($1, $2)`, e.AggregateID, e.CreatedAt)
	return err
})

func Example() {
	if err := run(); err != nil {
		log.Fatal(err)
	}
}

func run() error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	spans, err := stdouttrace.New() // in production: otlptracehttp.New(ctx)
	if err != nil {
		return err
	}
	tracers := sdktrace.NewTracerProvider(sdktrace.WithBatcher(spans))
	defer tracers.Shutdown(context.Background())
	metrics, err := stdoutmetric.New() // in production: otlpmetrichttp.New(ctx)
	if err != nil {
		return err
	}
	meters := sdkmetric.NewMeterProvider(sdkmetric.WithReader(sdkmetric.NewPeriodicReader(metrics)))
	defer meters.Shutdown(context.Background())

	telemetry, err := orchestratorotel.New(orchestratorotel.Config[orchestrator.Event]{
		TracerProvider: tracers,
		MeterProvider:  meters,
		Metadata:       orchestratorotel.EventMetadata,
	})
	if err != nil {
		return err
	}

	db, err := sql.Open("postgres", os.Getenv("DATABASE_URL"))
	if err != nil {
		return err
	}
	if err := orchestrator.RunMigrations(db); err != nil {
		return err
	}
	events, err := orchestrator.NewEventTable(db, "events")
	if err != nil {
		return err
	}
	o, err := orchestrator.New(orchestrator.Config[orchestrator.Event]{
		DB:         db,
		EventStore: events,
		ReplicaSet: "main-projections",
		Around:     telemetry.Around(),
		Observer:   telemetry.Observer(),
	})
	if err != nil {
		return err
	}
	return o.Run(ctx, []orchestrator.Projection[orchestrator.Event]{users})
}
