package orchestrator

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"time"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// The settings of a program, with their defaults, and what is wrong with them: every error
// names the field.

// ReplicaSetName is the name of a group of projections that scale together.
type ReplicaSetName string

// A ReplacementWindow that is not 0 is no shorter, and no longer.
const (
	replacementWindowMin = time.Millisecond
	replacementWindowMax = time.Hour
)

// maxPartitions is the largest number of partitions that a replica set can have.
const maxPartitions = protocol.Slots

// Config configures an Orchestrator. DB, EventStore and ReplicaSet are required. A zero in
// any other field means its default.
//
// All workers of a replica set should have the same timeouts.
type Config[E any] struct {
	// DB is the database through which workers coordinate. It holds the library's tables;
	// checkpoints and the writes of transactional projections are committed there. The worker
	// needs two connections for coordination, of which it keeps one open; one to read events
	// (from the EventStore's pool, if that is another); one for each projection on each
	// partition; and those that handlers take themselves. Allow the pool to keep that many
	// idle (sql.DB.SetMaxIdleConns, whose default is 2).
	DB *sql.DB
	// EventStore is where the events come from.
	EventStore EventStore[E]
	// ReplicaSet is the group that this worker belongs to: at most 200 bytes,
	// no control characters.
	ReplicaSet ReplicaSetName
	// Schema is the PostgreSQL schema of the library's tables: at most 63 bytes. It must
	// be the same for all workers of the set, for Migrate and for package ops (InSchema).
	// Default: the schema that the search path leads to when the worker starts.
	Schema string

	// HeartbeatInterval is how often the worker renews its lease and checks for a new
	// generation. At least 10ms. Default: 5s.
	HeartbeatInterval time.Duration
	// StaleWorkerTimeout is the length of the lease: how long the partitions of a worker stay
	// idle after its last heartbeat if its process is frozen or its machine is lost (with
	// LeaseOnly, also if it crashes). A worker that can't reach the database gives up its
	// lease by itself after four fifths of it. At least three times HeartbeatInterval.
	// Default: 30s.
	StaleWorkerTimeout time.Duration
	// CoordinationTimeout is how long a handler may continue after its worker was asked to
	// stop. After half of it, the handler's context is cancelled; after all of it, Run returns
	// ErrCoordinationTimeout. So set it to more than twice the time of the slowest handler.
	// Default: 60s.
	CoordinationTimeout time.Duration
	// BatchSize is the largest number of events that are handled between two commits.
	// Default: 100.
	BatchSize int

	// Partitions is how many partitions the worker takes and handles concurrently, each
	// in its own order. If handlers wait for I/O, several partitions in one worker do as
	// much as several workers. At most 5040. Default: 1.
	Partitions int
	// MaxPartitions is the largest number of partitions of the replica set. Workers beyond it
	// are standbys. If values differ, that of the newest worker applies. At most 5040.
	// Default: 0, the sum of all workers' Partitions.
	MaxPartitions int
	// JoinWindow is how long the first joining worker waits for others, so that they share one
	// new generation. Default: 500ms.
	JoinWindow time.Duration
	// ReplacementWindow is how long this worker's partitions are reserved for a replacement
	// after Run was asked to stop. The next worker that joins takes them over unchanged, so a
	// rolling update that stops a pod before it starts the next one pauses no other worker.
	// Set it a little longer than the time between the end of a pod and the start of its
	// replacement. In between, no worker handles these partitions. If no worker joins in time,
	// the others re-partition. No partitions are reserved after a crash, an error or a commit
	// that could not be finished, or by CatchUp. From 1ms to 1h. Default: 0, nothing is
	// reserved.
	ReplacementWindow time.Duration
	// PollInterval is the longest time between two polls for new events when there are none.
	// After an event, polls are milliseconds apart; without events they become less frequent.
	// Default: 1s.
	PollInterval time.Duration
	// ReadAheadBytes is about how much of the event stream may be kept in memory: events
	// that are read ahead of the handlers, and events that slower projections have not
	// handled. It applies to all workers of the process with the same EventStore; the
	// largest value counts. A single event that is larger is still read. Default: 16 MiB.
	ReadAheadBytes int
	// Retry is the delay before a failed event is handled again. Default: see Retry.
	Retry Retry
	// OnFailure is what happens when a handler fails. Default: RetryForever.
	OnFailure FailurePolicy
	// Failures are rules for single projections, by their names, in place of OnFailure.
	// Run refuses a name that none of its projections has. Default: none.
	Failures map[string]FailureRule

	// Around wraps each call of a handler, for traces, logs, metrics and deadlines. It must
	// call next once, with its own ctx or one derived from it, and wait for it. The error that
	// Around returns counts as the handler's. A panic of the handler is a *PanicError that
	// next returns. If Around returns nil without calling next, calls it twice, or returns
	// before next does, the call has failed. EventsFrom(ctx) returns the events. Around is
	// called concurrently, and not for an event that can't be read. Default: none.
	Around func(ctx context.Context, d Delivery, next func(ctx context.Context) error) error

	// LeaseOnly disables fast crash detection. By default the worker keeps one connection of
	// DB for itself, and other workers detect a crash within two seconds, because that
	// connection ends. In return, a worker that can't reach the database for 0.65s cancels its
	// running handlers, and calls them again when it can. Set LeaseOnly if handlers take long
	// and must not be cancelled. A crash is then noticed when the lease ends.
	//
	// LeaseOnly is implied, and that is logged once: behind a transaction pooler, where
	// most answers of the database take more than 0.1s, where handlers were cancelled again
	// and again, for a pool whose limit (SetMaxOpenConns) is below four for each worker
	// that shares it, and for a StaleWorkerTimeout below 4s. Default: false.
	LeaseOnly bool

	// Notifier makes workers react in milliseconds instead of within a second (under
	// LeaseOnly, at their next heartbeat). It listens on one connection to the database of
	// DB, for all workers of the process with the same Notifier. Package pqnotify has one
	// that works beside any driver of DB. Notifications only make workers poll sooner:
	// while the connection is lost, which is logged once, or behind a transaction pooler,
	// where LISTEN does not work, they poll as without it. Default: none.
	Notifier Notifier
	// EventsChannel is a channel that you NOTIFY, with any payload, in transactions that
	// append events, for example in a trigger. The process polls for new events when the
	// Notifier, which must be set, receives a notification; while such notifications
	// arrive, it polls by itself only once in five times PollInterval. At most 63 bytes,
	// in the exact spelling: NOTIFY turns names without quotes into lower case.
	// Default: none.
	EventsChannel string

	// Logger receives a line for each generation and each problem; docs/messages.md lists
	// all messages and keys. Records are dropped while it blocks for longer than a second.
	// No record has a connection string or a password in it. For silence, set it to
	// slog.New(slog.DiscardHandler). Default: slog.Default().
	Logger *slog.Logger
	// Observer has functions that are called when something happens, for metrics and
	// traces. Default: none.
	Observer *Observer
	// StallAfter is the time without progress, although there are events to handle, after
	// which a partition of a projection is stalled. That is logged and reported to
	// Observer.Stalled, with the reason. Default: 1 minute.
	StallAfter time.Duration

	own map[string]projectionSettings // of projections that have some
}

// Retry is an exponential backoff: the first retry comes after Min, each
// further one after twice the time, up to Max; jitter takes off up to half.
type Retry struct {
	// Min is the delay of the first retry. Default: 100ms.
	Min time.Duration
	// Max is the longest delay. At least Min. Default: 30s.
	Max time.Duration
}

const (
	retryMin = 100 * time.Millisecond
	retryMax = 30 * time.Second
)

// withDefaults returns it with its zeros replaced.
func (r Retry) withDefaults() Retry {
	return Retry{Min: cmp.Or(r.Min, retryMin), Max: cmp.Or(r.Max, retryMax)}
}

// batchSize, retry and stallAfter return the settings of a projection.
func (c Config[E]) batchSize(projection string) int {
	if own := c.own[projection].batch; own != nil {
		return *own
	}
	return c.BatchSize
}

func (c Config[E]) retry(projection string) Retry {
	if own := c.own[projection].retry; own != nil {
		return own.withDefaults()
	}
	return c.Retry
}

func (c Config[E]) stallAfter(projection string) time.Duration {
	if own := c.own[projection].stall; own != nil {
		return *own
	}
	return c.StallAfter
}

// FailurePolicy is what happens when a handler returns an error or panics.
type FailurePolicy int

const (
	// RetryForever calls the handler again until it succeeds. The partition of the projection
	// waits; other projections and partitions continue.
	RetryForever FailurePolicy = iota
	// StopOnFailure commits what precedes the event and leaves the replica set. Run
	// returns a *HandlerError.
	StopOnFailure
	// ParkEvents puts the event into a dead-letter queue, the table orchestrator_parked, and
	// continues with the next event. Later events of the same aggregate are parked behind it,
	// which keeps the order within the aggregate. Parked events are handled when an operator
	// asks for it: see ops.Parked, ops.RetryParked and ops.DiscardParked.
	ParkEvents
)

// FailureRule is when a projection's handler has failed often enough, and what happens
// then. Zero fields mean their defaults. Each worker counts for itself, from 0.
//
// These failures are retried and not counted: deadlocks and serialization failures (SQLSTATE
// 40P01, 40001); and interruptions, which are not even attempts. A call was interrupted if the
// library has cancelled its context; if the handler's connection to the database was lost or
// could not be made (08…; for a transactional projection, everything that a lost connection
// looks like); or if the server stops, starts or is full (57P01 to 57P05, 53300). These
// failures, except cancelled contexts, count if they repeat at the same event alone: once
// there were more than three times Attempts of them in a row, over more than
// StaleWorkerTimeout, each further one counts.
//
// All other failures count at once, also those of limits: statement_timeout, lock_timeout,
// temp_file_limit, the handler's own deadline, a transaction left idle.
type FailureRule struct {
	// Policy is what happens when the handler has failed often enough.
	Policy FailurePolicy
	// Attempts is how often the handler must fail at the event, alone. An error that is
	// Permanent counts as enough. It has no meaning for RetryForever.
	// Default: 1 for StopOnFailure, else 5.
	Attempts int
	// MaxParked is how many events of a partition may be parked. When there is no room
	// for another one, the partition of the projection waits until some were retried or
	// discarded. Default: 1000.
	MaxParked int
}

// failureRule returns the rule for a projection, with its zeros replaced.
func (c Config[E]) failureRule(projection string) FailureRule {
	rule, ok := c.Failures[projection]
	if !ok {
		rule.Policy = c.OnFailure
	}
	if rule.Attempts == 0 && rule.Policy == StopOnFailure {
		rule.Attempts = 1
	}
	rule.Attempts, rule.MaxParked = cmp.Or(rule.Attempts, 5), cmp.Or(rule.MaxParked, 1000)
	return rule
}

// failuresProblem returns which of the fields about failures is wrong, and why.
func (c Config[E]) failuresProblem() (field, problem string) {
	if p := policyProblem(c.OnFailure); p != "" {
		return "OnFailure", p
	}
	for _, name := range slices.Sorted(maps.Keys(c.Failures)) {
		if field, problem := c.Failures[name].problem(); problem != "" {
			return fmt.Sprintf("Failures[%q].%s", name, field), problem
		}
	}
	return "", ""
}

// problem returns which field is wrong, and why.
func (r FailureRule) problem() (field, problem string) {
	switch {
	case policyProblem(r.Policy) != "":
		return "Policy", policyProblem(r.Policy)
	case r.Attempts < 0:
		return "Attempts", fmt.Sprintf("is %d; it can't be negative", r.Attempts)
	case r.MaxParked < 0:
		return "MaxParked", fmt.Sprintf("is %d; it can't be negative", r.MaxParked)
	}
	return "", ""
}

func policyProblem(p FailurePolicy) string {
	if p < RetryForever || p > ParkEvents {
		return fmt.Sprintf("is %d; it must be RetryForever, StopOnFailure or ParkEvents", p)
	}
	return ""
}

// checkFailures makes sure that each rule is for one of the projections.
func (c Config[E]) checkFailures(names []string) error {
	for _, name := range slices.Sorted(maps.Keys(c.Failures)) {
		if !slices.Contains(names, name) {
			return configError("Failures", fmt.Sprintf("has a rule for %q, but Run was given no such projection", name))
		}
	}
	return nil
}

// withSettingsOf returns the config with the options of the projections (ProjectionOption).
func (c Config[E]) withSettingsOf(projections []Projection[E]) (Config[E], error) {
	rules := maps.Clone(c.Failures)
	c.own = map[string]projectionSettings{}
	for _, p := range projections {
		own, ok := p.(interface{ settings() projectionSettings })
		if !ok {
			continue
		}
		name := own.settings().name
		c.own[name] = own.settings()
		if option, problem := c.own[name].problem(); problem != "" {
			return c, fmt.Errorf("%w: %s of projection %q %s", ErrInvalidConfig, option, name, problem)
		}
		if own.settings().rule == nil {
			continue
		}
		if _, twice := rules[name]; twice {
			return c, configError("Failures", fmt.Sprintf("has a rule for %q, which has one of its own (WithFailureRule); remove one of the two", name))
		}
		if rules == nil {
			rules = map[string]FailureRule{}
		}
		rules[name] = *own.settings().rule
	}
	c.Failures = rules
	return c, nil
}

// withDefaults returns the config with its zeros replaced, or what is wrong.
func (c Config[E]) withDefaults() (Config[E], error) {
	if c.DB == nil {
		return c, configError("DB", "is nil; open a database with sql.Open")
	}
	if isNil(c.EventStore) {
		return c, configError("EventStore", "is nil; use NewEventTable or an EventStore of your own")
	}
	if problem := store.NameProblem(string(c.ReplicaSet)); problem != "" {
		return c, configError("ReplicaSet", problem)
	}
	if problem := store.SchemaProblem(c.Schema); problem != "" && c.Schema != "" {
		return c, configError("Schema", problem)
	}
	for _, d := range []struct {
		field    string
		value    *time.Duration
		fallback time.Duration
	}{
		{"HeartbeatInterval", &c.HeartbeatInterval, 5 * time.Second},
		{"StaleWorkerTimeout", &c.StaleWorkerTimeout, 30 * time.Second},
		{"CoordinationTimeout", &c.CoordinationTimeout, 60 * time.Second},
		{"JoinWindow", &c.JoinWindow, 500 * time.Millisecond},
		{"ReplacementWindow", &c.ReplacementWindow, 0},
		{"PollInterval", &c.PollInterval, time.Second},
		{"Retry.Min", &c.Retry.Min, retryMin},
		{"Retry.Max", &c.Retry.Max, retryMax},
		{"StallAfter", &c.StallAfter, time.Minute},
	} {
		if *d.value < 0 {
			return c, configError(d.field, fmt.Sprintf("is %s; it can't be negative", *d.value))
		}
		if *d.value == 0 {
			*d.value = d.fallback
		}
	}
	for _, n := range []struct {
		field    string
		value    *int
		fallback int
	}{{"BatchSize", &c.BatchSize, 100}, {"ReadAheadBytes", &c.ReadAheadBytes, 16 << 20}, {"Partitions", &c.Partitions, 1}} {
		if *n.value < 0 {
			return c, configError(n.field, fmt.Sprintf("is %d; it can't be negative", *n.value))
		}
		if *n.value == 0 {
			*n.value = n.fallback
		}
	}
	switch {
	case c.HeartbeatInterval < 10*time.Millisecond:
		return c, configError("HeartbeatInterval", fmt.Sprintf("is %s; the least is 10ms", c.HeartbeatInterval))
	case c.StaleWorkerTimeout < 3*c.HeartbeatInterval:
		return c, configError("StaleWorkerTimeout", fmt.Sprintf(
			"is %s, with a HeartbeatInterval of %s; it must be at least three times that, or a single late heartbeat costs the lease",
			c.StaleWorkerTimeout, c.HeartbeatInterval))
	case c.ReplacementWindow > 0 && c.ReplacementWindow < replacementWindowMin:
		return c, configError("ReplacementWindow", fmt.Sprintf("is %s; the least is %s, or 0 for none", c.ReplacementWindow, replacementWindowMin))
	case c.ReplacementWindow > replacementWindowMax:
		return c, configError("ReplacementWindow", fmt.Sprintf("is %s; the most is %s: the partitions of a worker that is never replaced are idle for that long", c.ReplacementWindow, replacementWindowMax))
	case c.Partitions > maxPartitions:
		return c, configError("Partitions", fmt.Sprintf("is %d; the most is %d", c.Partitions, maxPartitions))
	case c.MaxPartitions < 0 || c.MaxPartitions > maxPartitions:
		return c, configError("MaxPartitions", fmt.Sprintf("is %d; it must be between 0 (no limit) and %d", c.MaxPartitions, maxPartitions))
	case c.Retry.Max < c.Retry.Min:
		return c, configError("Retry.Max", fmt.Sprintf("is %s, less than Retry.Min, which is %s", c.Retry.Max, c.Retry.Min))
	}
	if field, problem := c.failuresProblem(); problem != "" {
		return c, configError(field, problem)
	}
	if field, problem := c.notificationsProblem(); problem != "" {
		return c, configError(field, problem)
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = slog.New(redact.Handler(safeLogger(c.Logger).Handler()))
	return c, nil
}

// notificationsProblem returns which of the fields for notifications is wrong, and why.
func (c Config[E]) notificationsProblem() (field, problem string) {
	if c.Notifier != nil && isNil(c.Notifier) {
		return "Notifier", "is a nil pointer"
	}
	switch channel := c.EventsChannel; {
	case channel == "":
		return "", ""
	case c.Notifier == nil:
		return "EventsChannel", "is set without a Notifier to listen to it; set both (package pqnotify has a Notifier)"
	case len(channel) > maxChannelBytes:
		return "EventsChannel", fmt.Sprintf("is %d bytes long; the most is %d", len(channel), maxChannelBytes)
	}
	return "EventsChannel", store.NameProblem(c.EventsChannel)
}

// maxChannelBytes is the limit of PostgreSQL.
const maxChannelBytes = 63

func configError(field, problem string) error {
	return fmt.Errorf("%w: Config.%s %s", ErrInvalidConfig, field, problem)
}

// isNil is true also for an interface that holds a nil pointer.
func isNil(v any) bool {
	if v == nil {
		return true
	}
	r := reflect.ValueOf(v)
	return r.Kind() == reflect.Pointer && r.IsNil()
}

// projectionNames checks the projections and returns their names.
func projectionNames[E any](projections []Projection[E]) ([]string, error) {
	if len(projections) == 0 {
		return nil, fmt.Errorf("%w: Run was given no projections", ErrInvalidConfig)
	}
	var names []string
	seen := map[string]int{}
	for i, p := range projections {
		if isNil(p) {
			return nil, fmt.Errorf("%w: projections[%d] is nil", ErrInvalidConfig, i)
		}
		if f, ok := p.(interface{ settings() projectionSettings }); ok && f.settings().missing {
			return nil, fmt.Errorf("%w: projections[%d], %q, has a nil handler", ErrInvalidConfig, i, f.settings().name)
		}
		name, err := apart("Name", func() (string, error) { return p.Name(), nil })
		if err != nil {
			return nil, fmt.Errorf("%w: Name of projections[%d] (%T) failed: %w", ErrInvalidConfig, i, p, err)
		}
		if problem := store.NameProblem(name); problem != "" {
			return nil, fmt.Errorf("%w: the name of projections[%d] %s", ErrInvalidConfig, i, problem)
		}
		if first, ok := seen[name]; ok {
			return nil, fmt.Errorf("%w: projections[%d] and projections[%d] are both named %q", ErrInvalidConfig, first, i, name)
		}
		seen[name] = i
		names = append(names, name)
	}
	return names, nil
}
