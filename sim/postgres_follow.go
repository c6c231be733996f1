package sim

import (
	"context"

	"github.com/getpup/pupsourcing-orchestrator/internal/protocol"
	"github.com/getpup/pupsourcing-orchestrator/internal/store"
)

func (c *postgresConnection) followed(projection string, done func(protocol.Followed, error)) {
	if err := c.free("followed"); err != nil {
		done(protocol.Followed{}, err)
		return
	}
	f, err := c.store().Followed(context.Background(), projection)
	done(f, c.db.heard(err))
}

func (c *postgresConnection) versions(names []string, done func(map[string]*store.ProjectionVersion, error)) {
	if err := c.free("versions"); err != nil {
		done(nil, err)
		return
	}
	all, err := store.Versions(context.Background(), store.Tables{DB: c.db.pool, Schema: c.db.schema}, names...)
	done(all, c.db.heard(err))
}

func (c *postgresConnection) promote(projection, live string, hold bool, done func(int, error)) {
	if hold {
		panic("sim: PostgreSQL can't hold a promotion before its COMMIT")
	}
	if err := c.free("promote"); err != nil {
		done(0, err)
		return
	}
	parked, err := c.store().Promote(context.Background(), projection, live, "")
	done(parked, c.db.heard(err))
}

func (c *postgresConnection) retire(projection string, done func(error)) {
	if err := c.free("retire"); err != nil {
		done(err)
		return
	}
	done(c.db.heard(c.store().Retire(context.Background(), projection)))
}
