package harness

import "golang.org/x/sys/unix"

// CorePattern is a pattern for Options.CorePattern as this process would have it: none
// where it may not dump cores (ulimit -c 0), else one that names the file in the working
// directory by program and process.
func CorePattern() string {
	var r unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &r) != nil || r.Cur == 0 {
		return ""
	}
	return "core.%e.%p"
}
