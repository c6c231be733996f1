package sim

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

// An ownSession is a session of the server that a connection of the world keeps.
type ownSession struct {
	conn *sql.Conn
	store.Session
}

var errOtherSession = errors.New("another session has answered")

func (c *postgresConnection) attach(a protocol.Attach, done func(int32, protocol.Published, error)) {
	if err := c.free("attach"); err != nil {
		done(0, protocol.Published{}, err)
		return
	}
	p, ctx := c.db, context.Background()
	if p.transactions == transactionsMax {
		done(0, protocol.Published{}, errFull)
		return
	}
	conn, err := p.pool.Conn(ctx)
	if err != nil {
		done(0, protocol.Published{}, p.heard(err))
		return
	}
	p.transactions++
	at, err := c.store().Attach(ctx, conn, a)
	c.own = &ownSession{conn, at.Session}
	done(at.Key, at.Published, p.heard(err))
}

func (c *postgresConnection) prove() error {
	if err := c.free("prove"); err != nil {
		return err
	}
	same, err := c.own.Prove(context.Background())
	if err == nil && !same {
		err = errOtherSession
	}
	return c.db.heard(err)
}

func (c *postgresConnection) glimpse(worker protocol.WorkerID) (protocol.Glimpse, error) {
	if err := c.free("glimpse"); err != nil {
		return protocol.Glimpse{}, err
	}
	same, group, err := c.own.By(c.store()).Glimpse(context.Background(), worker)
	if err == nil && !same {
		err = errOtherSession
	}
	return group, c.db.heard(err)
}

// end releases the locks, as the end of the session does, so that the server has done it
// when this returns. The connection is closed: from the pool, another worker could get it
// with a lock of the same key and number.
func (s *ownSession) end() error {
	_, err := s.conn.ExecContext(context.Background(), `SELECT pg_advisory_unlock_all()`)
	_ = s.conn.Raw(func(any) error { return driver.ErrBadConn })
	return err
}
