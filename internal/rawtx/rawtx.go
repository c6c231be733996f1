// Package rawtx lets the modules of this repository, and no other, take the
// *sql.Tx out of the Tx that a handler gets. They need it for handlers whose
// signature another library defines.
package rawtx

import "database/sql"

// A Key can only be named here, so no program can declare an interface with SQLTx.
type Key struct{}

// Of returns the transaction behind a handler's Tx, nil if there is none.
func Of(tx any) *sql.Tx {
	if tx, ok := tx.(interface{ SQLTx(Key) *sql.Tx }); ok {
		return tx.SQLTx(Key{})
	}
	return nil
}
