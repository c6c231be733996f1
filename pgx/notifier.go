package orchestratorpgx

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/redact"
)

// Notifier is a value for orchestrator.Config.Notifier. It listens on a connection of a pool,
// which it keeps while workers listen. Notifiers of the same pool are equal, and the workers
// of a process that have equal Notifiers share the connection.
type Notifier struct{ pool *pgxpool.Pool }

var _ orchestrator.Notifier = Notifier{}

// NewNotifier returns a Notifier that listens on a connection of the pool. The pool must lead
// to the server itself, and to the database of orchestrator.Config.DB: behind a pooler in
// transaction mode, no notification arrives.
func NewNotifier(pool *pgxpool.Pool) Notifier { return Notifier{pool} }

// patience is how long a connection may be silent before it is checked, and the limit for
// each answer of the server.
const patience = 15 * time.Second

// Listen implements orchestrator.Notifier.
func (n Notifier) Listen(ctx context.Context, channels []string, up func(), heard func(channel, payload string)) error {
	if n.pool == nil {
		return errors.New("orchestratorpgx: the Notifier is a zero value; create it with NewNotifier")
	}
	conn, err := within(ctx, n.pool.Acquire)
	if err != nil {
		return redact.Error(fmt.Errorf("acquire a connection to listen on: %w", err))
	}
	defer giveBack(conn)
	return redact.Error(listen(ctx, conn.Conn(), channels, up, heard))
}

func listen(ctx context.Context, conn *pgx.Conn, channels []string, up func(), heard func(channel, payload string)) error {
	for _, c := range channels {
		if err := ask(ctx, conn, "LISTEN "+pgx.Identifier{c}.Sanitize()); err != nil {
			return fmt.Errorf("listen to %q: %w", c, err)
		}
	}
	up()
	for {
		silent, cancel := context.WithTimeout(ctx, patience)
		notification, err := conn.WaitForNotification(silent)
		cancel()
		switch {
		case err == nil && notification == nil:
			return errors.New("the pool's ConnConfig.OnNotification takes all notifications: leave it nil, or give the Notifier a pool of its own")
		case err == nil:
			heard(notification.Channel, notification.Payload)
		case ctx.Err() != nil:
			return ctx.Err()
		case silent.Err() == nil || conn.IsClosed():
			return fmt.Errorf("the connection has ended: %w", err)
		default:
			if err := ask(ctx, conn, "-- still there?"); err != nil {
				return fmt.Errorf("check the connection: %w", err)
			}
		}
	}
}

// ask runs a statement without a result.
func ask(ctx context.Context, conn *pgx.Conn, statement string) error {
	_, err := within(ctx, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, conn.PgConn().Exec(ctx, statement).Close()
	})
	return err
}

func within[T any](ctx context.Context, call func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return call(ctx)
}

// giveBack returns a connection to the pool. The next user of the connection receives no
// notifications: giveBack stops listening and drops pending ones. If that fails, it closes the
// connection.
func giveBack(conn *pgxpool.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), unlistenPatience)
	defer cancel()
	ended, end := context.WithCancel(ctx)
	end()
	if conn.Conn().IsClosed() || conn.Conn().PgConn().Exec(ctx, "UNLISTEN *").Close() != nil {
		_ = conn.Conn().Close(ctx)
	}
	for pending := true; pending; {
		n, _ := conn.Conn().WaitForNotification(ended) // returns only what has arrived
		pending = n != nil
	}
	conn.Release()
}

// unlistenPatience is the limit for giveBack. Run waits for it.
const unlistenPatience = 500 * time.Millisecond
