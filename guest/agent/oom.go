package agent

import (
	"strconv"
	"strings"
)

// oomKills is how many processes the kernel has killed for want of memory since the
// boot; 0 where it does not say (before Linux 4.13).
func oomKills() int {
	// /proc/vmstat has some 5 KiB.
	text, err := readFile("/proc/vmstat", 32<<10)
	if err != nil {
		return 0
	}
	return parseOOMKills(text)
}

func parseOOMKills(vmstat string) int {
	for line := range strings.Lines(vmstat) {
		if number, ok := strings.CutPrefix(line, "oom_kill "); ok {
			n, _ := strconv.Atoi(strings.TrimSpace(number))
			return n
		}
	}
	return 0
}
