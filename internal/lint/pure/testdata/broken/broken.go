package broken

// A package that does not compile has unknown types, where a range over a map
// could hide: it must not pass.
func size() int {
	return undeclared // want: does not compile: undefined: undeclared
}
