package store

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxNameBytes is how long a name may be.
const maxNameBytes = 200

// NameProblem returns what is wrong with a name that is written to the database, logs
// and terminals; "" if nothing is.
func NameProblem(name string) string {
	switch {
	case strings.TrimSpace(name) == "":
		return "is empty"
	case len(name) > maxNameBytes:
		return fmt.Sprintf("is %d bytes long; the most is %d", len(name), maxNameBytes)
	case !utf8.ValidString(name):
		return fmt.Sprintf("%q is not valid UTF-8", name)
	case strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Sprintf("%q contains a control character", name)
	}
	return ""
}
