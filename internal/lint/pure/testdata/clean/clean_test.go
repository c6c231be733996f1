package clean

import "time"

// A test may do what the core may not.
var started = time.Now()
