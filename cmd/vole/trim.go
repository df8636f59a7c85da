package main

import (
	"bufio"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// trimText gives back the pages of vole's own code and constants that only its start has used: what
// every package that is linked does before main, the reading of flags, the making of the machine. What
// is still used comes back from the page cache, a fault for 64 KiB. A debugger's breakpoints would be
// lost, so a process that is traced keeps them.
func trimText() error {
	if traced() {
		return nil
	}
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("find vole's own file: %w", err)
	}
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return fmt.Errorf("find vole's own mappings: %w", err)
	}
	defer maps.Close()
	lines := bufio.NewScanner(maps)
	var start, end uintptr
	var own bool
	for lines.Scan() {
		line := lines.Text()
		key, value, _ := strings.Cut(line, ":")
		if strings.Contains(key, "-") {
			start, end, own = ownText(line, exe)
			continue
		}
		// A page that differs from the file's, as relocations make it, would be lost.
		if !own || key != "Anonymous" || strings.TrimSpace(value) != "0 kB" {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			return os.NewSyscallError("madvise", errno)
		}
	}
	return lines.Err()
}

// ownText reads the first line of a mapping in /proc/self/smaps: where one of exe is that can't be
// written to.
func ownText(line, exe string) (start, end uintptr, ok bool) {
	head, path, _ := strings.Cut(line, " /")
	fields := strings.Fields(head)
	if "/"+path != exe || len(fields) < 2 || fields[1] != "r-xp" && fields[1] != "r--p" {
		return 0, 0, false
	}
	from, to, _ := strings.Cut(fields[0], "-")
	s, err1 := strconv.ParseUint(from, 16, 64)
	e, err2 := strconv.ParseUint(to, 16, 64)
	return uintptr(s), uintptr(e), err1 == nil && err2 == nil && s < e
}

// traced says whether a debugger has this process.
func traced() bool {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	for line := range strings.Lines(string(status)) {
		if pid, ok := strings.CutPrefix(line, "TracerPid:"); ok {
			return strings.TrimSpace(pid) != "0"
		}
	}
	return true
}
