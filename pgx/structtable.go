package orchestratorpgx

import (
	"cmp"
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"unsafe"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	orchestrator "github.com/getpup/pupsourcing-orchestrator"
	"github.com/getpup/pupsourcing-orchestrator/internal/eventtable"
)

// NewStructTable returns an events table whose columns are matched with the fields of a
// struct by name, with the conventions of pgx.RowToStructByName: case and underscores are
// ignored, the tag `db:"name"` names another column, `db:"-"` leaves a field out, and fields
// of embedded structs count as fields of the struct. See NewTable.
//
// cfg.Fields must be nil. If cfg.Columns is set, there must be a field for each column; otherwise
// the columns that have a field are read.
//
// NewStructTable reads the table's columns from the database. It returns ErrInvalidConfig,
// with field and column in the message, if a field has no column or can't hold its type.
func NewStructTable[E any](ctx context.Context, pool *pgxpool.Pool, cfg orchestrator.TableConfig[E]) (*orchestrator.Table[E], error) {
	switch {
	case pool == nil:
		return nil, fmt.Errorf("%w: orchestratorpgx.NewStructTable: the pool is nil; create one with pgxpool.New", orchestrator.ErrInvalidConfig)
	case cfg.Fields != nil:
		return nil, fmt.Errorf("%w: TableConfig.Fields is set, but NewStructTable derives it from the struct: leave it nil, or use NewTable", orchestrator.ErrInvalidConfig)
	}
	kind := reflect.TypeFor[E]()
	if kind.Kind() != reflect.Struct {
		return nil, fmt.Errorf("%w: NewStructTable needs a struct type; %s is not one", orchestrator.ErrInvalidConfig, kind)
	}
	table, err := eventtable.New(eventtable.Config{Schema: cfg.Schema, Table: cmp.Or(cfg.Table, "events")}).Find(ctx, DB(pool))
	if err != nil {
		return nil, fmt.Errorf("orchestrator: events table %s: %w", table.Name, err)
	}
	has, types, err := described(ctx, pool, table.Name)
	if err != nil {
		return nil, fmt.Errorf("orchestrator: columns of the events table %s: %w", table.Name, err)
	}
	fields, problem := match(kind, has, types, cfg.Columns)
	if problem != "" {
		return nil, fmt.Errorf("%w: the events table %s does not fit %s: %s", orchestrator.ErrInvalidConfig, table.Name, kind, problem)
	}
	cfg.Columns = nil
	for _, f := range fields {
		cfg.Columns = append(cfg.Columns, f.column)
	}
	cfg.Fields = func(e *E, dest []any) []any {
		for _, f := range fields {
			dest = append(dest, reflect.NewAt(f.kind, unsafe.Add(unsafe.Pointer(e), f.offset)).Interface()) // the same as &e.Field
		}
		return dest
	}
	return NewTable(pool, cfg)
}

// described returns the columns of a table, in order.
func described(ctx context.Context, pool *pgxpool.Pool, table string) ([]pgconn.FieldDescription, *pgtype.Map, error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Release()
	d, err := conn.Conn().Prepare(ctx, "", `SELECT * FROM `+table)
	if err != nil {
		return nil, nil, err
	}
	return d.Fields, conn.Conn().TypeMap(), nil
}

// A field of a struct and its column.
type field struct {
	name   string // with the names of the structs that embed it
	column string // from the tag or the field; after match, from the table
	tagged bool
	offset uintptr
	kind   reflect.Type
}

// fieldsOf returns the fields of a struct that need a column.
func fieldsOf(t reflect.Type, at uintptr, within string) (out []field) {
	for i := range t.NumField() {
		f := t.Field(i)
		tag, tagged := f.Tag.Lookup("db")
		tag, _, _ = strings.Cut(tag, ",")
		switch {
		case f.Anonymous && f.Type.Kind() == reflect.Struct:
			out = append(out, fieldsOf(f.Type, at+f.Offset, within+f.Name+".")...)
		case !f.IsExported() || tag == "-":
		case tagged:
			out = append(out, field{within + f.Name, tag, true, at + f.Offset, f.Type})
		default:
			out = append(out, field{within + f.Name, f.Name, false, at + f.Offset, f.Type})
		}
	}
	return out
}

// match finds the column of each field, and returns what is wrong, or "". If wanted is not nil,
// each wanted column must have a field.
func match(kind reflect.Type, has []pgconn.FieldDescription, types *pgtype.Map, wanted []string) (fields []field, problem string) {
	fields = fieldsOf(kind, 0, "")
	if len(fields) == 0 {
		return nil, "the struct has no exported field"
	}
	if wanted != nil {
		has = slices.DeleteFunc(slices.Clone(has), func(d pgconn.FieldDescription) bool { return !slices.Contains(wanted, d.Name) })
	}
	var problems []string
	taken := map[string]string{}
	for i := range fields {
		f := &fields[i]
		at := f.in(has)
		if at < 0 {
			problems = append(problems, fmt.Sprintf("there is no column for the field %s (name one with the tag `db:\"name\"`, or leave the field out with `db:\"-\"`; there are: %s)", f.name, names(has)))
			continue
		}
		c := newColumn(types, has[at])
		c.Format = formats[c.DataTypeOID]
		f.column = c.Name
		switch other := taken[c.Name]; {
		case other != "":
			problems = append(problems, fmt.Sprintf("the column %s matches two fields, %s and %s", eventtable.Quote(c.Name), other, f.name))
		case !c.fits(reflect.New(f.kind).Interface()):
			problems = append(problems, fmt.Sprintf("the column %s has the type %s, which the field %s of type %s can't hold", eventtable.Quote(c.Name), c.typeName(), f.name, f.kind))
		}
		taken[c.Name] = f.name
	}
	for _, name := range wanted {
		switch there := slices.ContainsFunc(has, func(d pgconn.FieldDescription) bool { return d.Name == name }); {
		case !there:
			problems = append(problems, fmt.Sprintf("there is no column %s", eventtable.Quote(name)))
		case taken[name] == "":
			problems = append(problems, fmt.Sprintf("there is no field for the column %s", eventtable.Quote(name)))
		}
	}
	return fields, strings.Join(problems, "; ")
}

func names(columns []pgconn.FieldDescription) string {
	var out []string
	for _, c := range columns {
		out = append(out, eventtable.Quote(c.Name))
	}
	return strings.Join(out, ", ")
}

// in returns the index of the field's column, or -1.
func (f *field) in(columns []pgconn.FieldDescription) int {
	index := func(same func(column string) bool) int {
		return slices.IndexFunc(columns, func(d pgconn.FieldDescription) bool { return same(d.Name) })
	}
	if !f.tagged {
		plain := strings.ReplaceAll(f.column, "_", "")
		return index(func(column string) bool { return strings.EqualFold(strings.ReplaceAll(column, "_", ""), plain) })
	}
	if at := index(func(column string) bool { return column == f.column }); at >= 0 {
		return at
	}
	return index(func(column string) bool { return strings.EqualFold(column, f.column) })
}
