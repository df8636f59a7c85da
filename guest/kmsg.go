package guest

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// syslog(2) actions (include/linux/syslog.h).
const (
	syslogReadAll    = 3
	syslogSizeBuffer = 10
)

// levelWarning is KERN_WARNING; what is more serious has a lower number.
const levelWarning = 4

// kernelLog returns what the kernel has said so far, in lines that begin with
// their level, "<6>[    0.000000] Linux version". syslog(2) hands it all out in
// one call, /dev/kmsg takes one for each record.
func kernelLog() string {
	size, err := unix.Klogctl(syslogSizeBuffer, nil)
	if err != nil || size <= 0 || size > 64<<20 {
		return ""
	}
	buf := make([]byte, size)
	n, err := unix.Klogctl(syslogReadAll, buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// messages sums up a kernel log.
type messages struct {
	total      int
	serious    []string // at warning level or above, with their time stamps
	hypervisor string   // as the kernel called it
}

// parseLog reads the lines of a kernel log. Those that user space wrote into it
// are not counted.
func parseLog(log string) messages {
	var m messages
	for line := range strings.Lines(log) {
		level, text, ok := splitLevel(strings.TrimRight(line, "\n"))
		if !ok {
			continue
		}
		m.total++
		if level <= levelWarning {
			m.serious = append(m.serious, text)
		}
		if _, name, ok := strings.Cut(text, "Hypervisor detected: "); ok {
			m.hypervisor = strings.TrimSpace(name)
		}
	}
	return m
}

// splitLevel takes "<N>" off a line. N is the level and, times eight, the
// facility, which is 0 for the kernel.
func splitLevel(line string) (level int, text string, ok bool) {
	rest, ok := strings.CutPrefix(line, "<")
	if !ok {
		return 0, "", false
	}
	number, text, ok := strings.Cut(rest, ">")
	if !ok {
		return 0, "", false
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil || n>>3 != 0 {
		return 0, "", false
	}
	return int(n), text, true
}
