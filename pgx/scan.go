package orchestratorpgx

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"strconv"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/getpup/pupsourcing-orchestrator/internal/chunks"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// How a value becomes a field. The server sends a value in its binary format. It goes from the
// connection's buffer to its destination in the first of these ways that fits:
//
//  1. The types of most events are decoded here.
//  2. A sql.Scanner gets the value that pgx's database/sql driver would give it.
//  3. What database/sql can scan, it scans, from that driver's value.
//  4. pgtype scans the rest: slices, maps, structs, the types of pgx.
//
// So an event has the same fields as with orchestrator.NewTable over that driver. What that
// driver can't read is as pgx reads it.

// formats are the formats of results: binary for the types that are decoded here, or that pgx's
// database/sql driver reads as binary. Others come as text, as in that driver.
var formats = pgx.QueryResultFormatsByOID{
	pgtype.BoolOID: 1, pgtype.ByteaOID: 1, pgtype.CIDOID: 1, pgtype.DateOID: 1, pgtype.Float4OID: 1, pgtype.Float8OID: 1,
	pgtype.Int2OID: 1, pgtype.Int4OID: 1, pgtype.Int8OID: 1, pgtype.OIDOID: 1, pgtype.TimestampOID: 1, pgtype.TimestamptzOID: 1, pgtype.XIDOID: 1,
	pgtype.TextOID: 1, pgtype.VarcharOID: 1, pgtype.BPCharOID: 1, pgtype.NameOID: 1, pgtype.UUIDOID: 1, pgtype.JSONOID: 1, pgtype.JSONBOID: 1,
}

// A class is the way in which the bytes of a value are decoded.
type class int

const (
	other class = iota
	text        // the bytes are the text
	jsonb       // a version byte, then the text
	raw         // bytea
	uuid
	int2
	int4
	int8
	boolean
	float4
	float8
	timestamptz
	timestamp
)

// classOf returns the class of a column.
func classOf(m *pgtype.Map, f pgconn.FieldDescription) class {
	if f.Format != pgx.BinaryFormatCode {
		if _, asBinary := formats[f.DataTypeOID]; asBinary { // a session that can't prepare gets everything as text
			switch f.DataTypeOID {
			case pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.NameOID, pgtype.UUIDOID, pgtype.JSONOID, pgtype.JSONBOID:
				return text
			}
			return other
		}
		if f.DataTypeOID == pgtype.XMLOID {
			return other
		}
		return text
	}
	switch f.DataTypeOID {
	case pgtype.TextOID, pgtype.VarcharOID, pgtype.BPCharOID, pgtype.NameOID, pgtype.JSONOID:
		return text
	case pgtype.JSONBOID:
		return jsonb
	case pgtype.ByteaOID:
		return raw
	case pgtype.UUIDOID:
		return uuid
	case pgtype.Int2OID:
		return int2
	case pgtype.Int4OID:
		return int4
	case pgtype.Int8OID:
		return int8
	case pgtype.BoolOID:
		return boolean
	case pgtype.Float4OID:
		return float4
	case pgtype.Float8OID:
		return float8
	case pgtype.TimestamptzOID:
		if c, ok := codec[*pgtype.TimestamptzCodec](m, f.DataTypeOID); ok && c.ScanLocation == nil {
			return timestamptz
		}
	case pgtype.TimestampOID:
		if c, ok := codec[*pgtype.TimestampCodec](m, f.DataTypeOID); ok && c.ScanLocation == nil {
			return timestamp
		}
	}
	return other
}

func codec[C pgtype.Codec](m *pgtype.Map, oid uint32) (c C, ok bool) {
	if t, found := m.TypeForOID(oid); found {
		c, ok = t.Codec.(C)
	}
	return c, ok
}

// A column of a result.
type column struct {
	pgconn.FieldDescription
	types *pgtype.Map
	class class
	last  string // the text of the latest row
	texts bool   // it is scanned into strings

	value func(src []byte) (driver.Value, error) // nil: not created yet
	plan  pgtype.ScanPlan                        // for kind
	kind  reflect.Type
}

func newColumn(m *pgtype.Map, f pgconn.FieldDescription) column {
	return column{FieldDescription: f, types: m, class: classOf(m, f)}
}

// scan decodes a value into its destination.
func (c *column) scan(src []byte, dest any, plain *plainScan, room *room) error {
	if src != nil {
		if done := c.quick(src, dest, room); done {
			return nil
		}
	} else if done := null(dest); done {
		return nil
	}
	if s, ok := dest.(sql.Scanner); ok {
		v, err := c.driverValue(src)
		if err != nil {
			return err
		}
		return s.Scan(v)
	}
	kind := reflect.TypeOf(dest)
	if kind != c.kind {
		c.kind, c.plan = kind, nil
		if !databaseSQL(kind) {
			c.plan = c.types.PlanScan(c.DataTypeOID, c.Format, dest)
		}
	}
	if c.plan != nil {
		return c.plan.Scan(src, dest)
	}
	v, err := c.driverValue(src)
	if err != nil {
		return err
	}
	return plain.scan(v, dest)
}

// quick decodes a value for the most common types, and reports whether it has.
func (c *column) quick(src []byte, dest any, room *room) bool {
	switch d := dest.(type) {
	case *string:
		s, ok := c.string(src, room)
		if ok {
			*d = s
		}
		return ok
	case *eventtable.Text:
		s, ok := c.string(src, room)
		if ok {
			*d = eventtable.Text{String: s}
		}
		return ok
	case *sql.NullString:
		s, ok := c.string(src, room)
		if ok {
			*d = sql.NullString{String: s, Valid: true}
		}
		return ok
	case *[]byte:
		b, ok := c.bytes(src, room)
		if ok {
			*d = b
		}
		return ok
	case *json.RawMessage:
		b, ok := c.bytes(src, room)
		if ok {
			*d = b
		}
		return ok
	case *int64:
		n, ok := c.int(src)
		if ok {
			*d = n
		}
		return ok
	case *int:
		n, ok := c.int(src)
		if ok = ok && int64(int(n)) == n; ok {
			*d = int(n)
		}
		return ok
	case *int32:
		n, ok := c.int(src)
		if ok = ok && int64(int32(n)) == n; ok {
			*d = int32(n)
		}
		return ok
	case *int16:
		n, ok := c.int(src)
		if ok = ok && int64(int16(n)) == n; ok {
			*d = int16(n)
		}
		return ok
	case *sql.NullInt64:
		n, ok := c.int(src)
		if ok {
			*d = sql.NullInt64{Int64: n, Valid: true}
		}
		return ok
	case *time.Time:
		at, ok := c.time(src)
		if ok {
			*d = at
		}
		return ok
	case *sql.NullTime:
		at, ok := c.time(src)
		if ok {
			*d = sql.NullTime{Time: at, Valid: true}
		}
		return ok
	case *bool:
		if c.class == boolean && len(src) == 1 {
			*d = src[0] == 1
			return true
		}
	case *float64:
		switch {
		case c.class == float8 && len(src) == 8:
			*d = math.Float64frombits(binary.BigEndian.Uint64(src))
			return true
		}
	case *[16]byte:
		if c.class == uuid && len(src) == 16 {
			copy(d[:], src)
			return true
		}
	case *sql.RawBytes:
		if c.class == text || c.class == raw {
			*d = src
			return true
		}
	}
	return false
}

// null sets a destination to NULL, and reports whether it has.
func null(dest any) bool {
	switch d := dest.(type) {
	case *eventtable.Text:
		*d = eventtable.Text{Null: true}
	case *sql.NullString:
		*d = sql.NullString{}
	case *sql.NullInt64:
		*d = sql.NullInt64{}
	case *sql.NullTime:
		*d = sql.NullTime{}
	case *[]byte:
		*d = nil
	case *json.RawMessage:
		*d = nil
	case *sql.RawBytes:
		*d = nil
	case *any:
		*d = nil
	default:
		return false
	}
	return true
}

// string returns a value as a string. Many columns have the same text in row after row: it is
// stored once.
func (c *column) string(src []byte, room *room) (string, bool) {
	switch c.class {
	case text:
	case jsonb:
		if len(src) == 0 || src[0] != 1 {
			return "", false
		}
		src = src[1:]
	case raw:
		return string(src), true
	case uuid:
		if len(src) != 16 {
			return "", false
		}
		c.texts = true
		to := room.text(36)
		writeUUID(to, src)
		return unsafe.String(unsafe.SliceData(to), 36), true
	case int2, int4, int8:
		n, ok := c.int(src)
		return strconv.FormatInt(n, 10), ok
	default:
		return "", false
	}
	if c.texts = true; string(src) != c.last {
		to := room.text(len(src))
		copy(to, src)
		c.last = unsafe.String(unsafe.SliceData(to), len(to)) // its bytes do not change any more
	}
	return c.last, true
}

func writeUUID(to, src []byte) {
	hex.Encode(to[0:8], src[0:4])
	hex.Encode(to[9:13], src[4:6])
	hex.Encode(to[14:18], src[6:8])
	hex.Encode(to[19:23], src[8:10])
	hex.Encode(to[24:36], src[10:16])
	to[8], to[13], to[18], to[23] = '-', '-', '-', '-'
}

func (c *column) bytes(src []byte, room *room) ([]byte, bool) {
	switch c.class {
	case text, raw:
	case jsonb:
		if len(src) == 0 || src[0] != 1 {
			return nil, false
		}
		src = src[1:]
	case uuid:
		if len(src) != 16 {
			return nil, false
		}
		var b [36]byte
		writeUUID(b[:], src)
		src = b[:]
	default:
		return nil, false
	}
	return room.bytes.Copy(src), true
}

func (c *column) int(src []byte) (int64, bool) {
	switch {
	case c.class == int8 && len(src) == 8:
		return int64(binary.BigEndian.Uint64(src)), true
	case c.class == int4 && len(src) == 4:
		return int64(int32(binary.BigEndian.Uint32(src))), true
	case c.class == int2 && len(src) == 2:
		return int64(int16(binary.BigEndian.Uint16(src))), true
	}
	return 0, false
}

// y2k is the origin of PostgreSQL's timestamps.
var y2k = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC).Unix()

// time returns a value as a time. ok is false for infinity.
func (c *column) time(src []byte) (t time.Time, ok bool) {
	if c.class != timestamptz && c.class != timestamp || len(src) != 8 {
		return t, false
	}
	n := int64(binary.BigEndian.Uint64(src))
	if n == math.MaxInt64 || n == math.MinInt64 {
		return t, false
	}
	t = time.Unix(y2k+n/1_000_000, n%1_000_000*1000)
	if c.class == timestamp {
		t = t.UTC()
	}
	return t, true
}

// A room holds the strings and bytes of events. One allocation for each would cost more than
// all other work on them.
type room struct {
	texts []byte       // unused rest of the block that the strings of the row share
	bytes chunks.Chunk // shared by the bytes of many rows: handlers get copies
}

// chunkBytes is the size of one allocation for bytes.
const chunkBytes = 16 << 10

// row starts a row: it allocates space for those of its strings that differ from the previous
// row.
func (r *room) row(columns []column, values [][]byte) {
	n := 0
	for i := range columns {
		switch c := &columns[i]; {
		case !c.texts:
		case c.class == uuid:
			n += 36
		case string(values[i]) != c.last:
			n += len(values[i])
		}
	}
	r.texts = nil
	if n > 0 {
		r.texts = make([]byte, n)
	}
}

// text returns space for a string of the row.
func (r *room) text(n int) []byte {
	if len(r.texts) < n {
		return make([]byte, n)
	}
	to := r.texts[:n:n]
	r.texts = r.texts[n:]
	return to
}

// driverValue returns the value that pgx's database/sql driver would return.
func (c *column) driverValue(src []byte) (driver.Value, error) {
	if src == nil {
		return nil, nil
	}
	if c.value == nil {
		c.value = c.valuer()
	}
	return c.value(src)
}

// valuer chooses by the column's type, as that driver does (stdlib.Rows).
func (c *column) valuer() func([]byte) (driver.Value, error) {
	switch c.DataTypeOID {
	case pgtype.BoolOID:
		return valueOf(c, func(d bool) (driver.Value, error) { return d, nil })
	case pgtype.ByteaOID, pgtype.JSONOID, pgtype.JSONBOID, pgtype.XMLOID:
		return valueOf(c, func(d []byte) (driver.Value, error) { return d, nil })
	case pgtype.CIDOID, pgtype.OIDOID, pgtype.XIDOID:
		return valueOf(c, func(d pgtype.Uint32) (driver.Value, error) { return d.Value() })
	case pgtype.DateOID:
		return valueOf(c, func(d pgtype.Date) (driver.Value, error) { return d.Value() })
	case pgtype.Float4OID:
		return valueOf(c, func(d float32) (driver.Value, error) { return float64(d), nil })
	case pgtype.Float8OID:
		return valueOf(c, func(d float64) (driver.Value, error) { return d, nil })
	case pgtype.Int2OID:
		return valueOf(c, func(d int16) (driver.Value, error) { return int64(d), nil })
	case pgtype.Int4OID:
		return valueOf(c, func(d int32) (driver.Value, error) { return int64(d), nil })
	case pgtype.Int8OID:
		return valueOf(c, func(d int64) (driver.Value, error) { return d, nil })
	case pgtype.TimestampOID:
		return valueOf(c, func(d pgtype.Timestamp) (driver.Value, error) { return d.Value() })
	case pgtype.TimestamptzOID:
		return valueOf(c, func(d pgtype.Timestamptz) (driver.Value, error) { return d.Value() })
	}
	return valueOf(c, func(d string) (driver.Value, error) { return d, nil })
}

func valueOf[T any](c *column, to func(T) (driver.Value, error)) func([]byte) (driver.Value, error) {
	plan := c.types.PlanScan(c.DataTypeOID, c.Format, new(T))
	return func(src []byte) (driver.Value, error) {
		var d T
		if err := plan.Scan(src, &d); err != nil {
			return nil, err
		}
		return to(d)
	}
}

// databaseSQL reports whether database/sql can scan into destinations of the type. It may still
// refuse a value.
func databaseSQL(kind reflect.Type) bool {
	if kind == nil || kind.Kind() != reflect.Pointer {
		return true // database/sql returns the error
	}
	switch to := kind.Elem(); to.Kind() {
	case reflect.Bool, reflect.String, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Slice:
		return to.Elem().Kind() == reflect.Uint8
	case reflect.Interface:
		return to.NumMethod() == 0
	case reflect.Pointer:
		return databaseSQL(to)
	default:
		return to == reflect.TypeFor[time.Time]()
	}
}

// fits reports whether some value of the column can be scanned into a destination.
func (c *column) fits(dest any) bool {
	kind := reflect.TypeOf(dest)
	if _, ok := dest.(sql.Scanner); ok || kind == nil || kind.Kind() != reflect.Pointer {
		return true // the scan returns the error, if there is one
	}
	if !databaseSQL(kind) {
		return !fails(c.types.PlanScan(c.DataTypeOID, c.Format, dest))
	}
	target := kind.Elem()
	for target.Kind() == reflect.Pointer {
		target = target.Elem()
	}
	return c.couldBe(target)
}

// typeName returns the name of the column's type.
func (c *column) typeName() string {
	if t, ok := c.types.TypeForOID(c.DataTypeOID); ok {
		return t.Name
	}
	return fmt.Sprintf("oid %d", c.DataTypeOID)
}

// couldBe reports whether database/sql can scan some value of the column into the destination.
// A text may hold anything. Bytes are never numbers, and numbers are never times.
func (c *column) couldBe(target reflect.Type) bool {
	isTime := target == reflect.TypeFor[time.Time]()
	number := target.Kind() == reflect.Bool || target.Kind() >= reflect.Int && target.Kind() <= reflect.Float64
	switch c.DataTypeOID {
	case pgtype.ByteaOID, pgtype.UUIDOID:
		return !isTime && !number
	case pgtype.TimestampOID, pgtype.TimestamptzOID, pgtype.DateOID:
		return !number
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID:
		return !isTime
	case pgtype.BoolOID:
		return !isTime
	}
	return true
}

// fails reports whether a plan is pgtype's plan for what it can't scan, which is not exported.
func fails(p pgtype.ScanPlan) bool { return fmt.Sprintf("%T", p) == "*pgtype.scanPlanFail" }

// A plainScan scans values with database/sql. That package does not export its conversions, but
// applies them to the rows of any driver. The driver below returns rows of one value.
type plainScan struct {
	value driver.Value
	rows  *sql.Rows // nil: nothing was scanned yet
}

func (s *plainScan) scan(value driver.Value, dest any) (err error) {
	if s.rows == nil {
		if s.rows, err = oneValue.Query("", s); err != nil {
			return err
		}
	}
	s.value = value
	if !s.rows.Next() {
		return s.rows.Err()
	}
	err = s.rows.Scan(dest)
	s.value = nil
	if wrapped, ok := err.(interface{ Unwrap() error }); ok { // it names the column of this driver
		err = wrapped.Unwrap()
	}
	return err
}

func (s *plainScan) close() {
	if s.rows != nil {
		_ = s.rows.Close()
	}
}

// oneValue is the database of the rows of all plainScans.
var oneValue = sql.OpenDB(oneValueConnector{})

type (
	oneValueConnector struct{}
	oneValueDriver    struct{}
	oneValueConn      struct{}
	oneValueRows      struct{ of *plainScan }
)

var errOneValue = errors.New("this driver only returns one value")

func (oneValueConnector) Connect(context.Context) (driver.Conn, error) { return oneValueConn{}, nil }
func (oneValueConnector) Driver() driver.Driver                        { return oneValueDriver{} }
func (oneValueDriver) Open(string) (driver.Conn, error)                { return oneValueConn{}, nil }
func (oneValueConn) Prepare(string) (driver.Stmt, error)               { return nil, errOneValue }
func (oneValueConn) Begin() (driver.Tx, error)                         { return nil, errOneValue }
func (oneValueConn) Close() error                                      { return nil }
func (oneValueConn) CheckNamedValue(*driver.NamedValue) error          { return nil }

func (oneValueConn) QueryContext(_ context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	of, ok := args[0].Value.(*plainScan)
	if !ok {
		return nil, errOneValue
	}
	return oneValueRows{of}, nil
}

func (oneValueRows) Columns() []string { return []string{"value"} }
func (oneValueRows) Close() error      { return nil }

func (r oneValueRows) Next(to []driver.Value) error {
	if len(to) != 1 {
		return io.EOF
	}
	to[0] = r.of.value
	return nil
}
