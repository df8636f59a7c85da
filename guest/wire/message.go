package wire

// Kind says what a frame is.
type Kind uint8

// Frames of the agent.
const (
	KindHello   Kind = 1 // Hello
	KindStarted Kind = 2 // Started
	KindFailed  Kind = 3 // Failed
	KindExited  Kind = 4 // Exited
	KindPong    Kind = 5 // Ping, as it came
	KindLog     Kind = 6 // Log
)

// Frames of the host.
const (
	KindStart    Kind = 64 // Command
	KindSignal   Kind = 65 // Signal
	KindResize   Kind = 66 // Resize
	KindPing     Kind = 67 // Ping
	KindPoweroff Kind = 68 // Poweroff
	KindClock    Kind = 69 // Clock
	KindRenew    Kind = 70 // Renew
	KindInput    Kind = 71 // Input
)

// Hello says that the agent is ready.
type Hello struct {
	// Release is the kernel's, as uname -r has it.
	Release string `json:"release"`
	// Init and Ready are the guest's uptime when the agent began and when it had
	// done what its Config says, in nanoseconds.
	Init  int64 `json:"init"`
	Ready int64 `json:"ready"`
	// Problems are what of the Config could not be done, in sentences. Commands can
	// be run all the same.
	Problems []string `json:"problems,omitempty"`
	// Lacks is what could not be done and is no mere problem: a directory that is to
	// be the host's is not, and what is written there would be lost. Each command
	// fails with it, as CauseFiles; OpRead does not.
	Lacks string `json:"lacks,omitempty"`
}

// File says what a standard file of a command is connected to.
type File uint8

const (
	FileNull   File = iota // /dev/null
	FileStream             // a pipe, whose other end is a stream connection
	FileTTY                // the command's terminal
	FileOut                // what standard output is: only for standard error
)

// Op is what a Command does.
type Op string

const (
	// OpExec runs a program. It is the default.
	OpExec Op = ""
	// OpRead sends the file Path as the standard output.
	OpRead Op = "read"
	// OpWrite makes the file Path of the standard input. It appears when all of it
	// is there, as Input says, with the mode Perm; a device, a pipe or a file of the
	// kernel's is written in place.
	OpWrite Op = "write"
)

// Command is a program to run, as os/exec has it.
type Command struct {
	// ID is the host's name for it, not used twice. Frames and streams about the
	// command carry it.
	ID uint32 `json:"id"`
	Op Op     `json:"op,omitempty"`
	// Path is the program. Without a slash it is looked for in the PATH of Env, on
	// the guest.
	Path Text `json:"path"`
	// Args is argv, its first the name that the program is called by.
	Args []Text `json:"args,omitempty"`
	// Env is the whole environment, "KEY=value".
	Env []Text `json:"env,omitempty"`
	// Dir is the working directory, "" the root.
	Dir Text `json:"dir,omitempty"`
	// UID, GID and Groups are who runs it.
	UID    uint32   `json:"uid,omitempty"`
	GID    uint32   `json:"gid,omitempty"`
	Groups []uint32 `json:"groups,omitempty"`
	Umask  uint32   `json:"umask"`
	// Perm is the mode of what OpWrite makes.
	Perm uint32 `json:"perm,omitempty"`
	// Files are standard input, output and error. With FileTTY among them the
	// command leads a session, whose terminal of Size it is; the stream Terminal
	// then carries what is typed to the guest, and what is shown to the host.
	Files [3]File `json:"files"`
	Size  Size    `json:"size,omitzero"`
}

// TTY says whether the command has a terminal.
func (c *Command) TTY() bool {
	return c.Files[0] == FileTTY || c.Files[1] == FileTTY || c.Files[2] == FileTTY
}

// Size is a terminal's window, in characters.
type Size struct {
	Rows uint16 `json:"rows"`
	Cols uint16 `json:"cols"`
}

// Started says that the command runs.
type Started struct {
	ID  uint32 `json:"id"`
	PID int    `json:"pid"`
}

// Failed says that the command could not be started (or the file of OpRead or
// OpWrite not be opened). Nothing more comes of it.
type Failed struct {
	ID uint32 `json:"id"`
	// Errno is why, as a number of the Linux ABI; 0 where it was something else.
	Errno uint32 `json:"errno,omitempty"`
	Cause Cause  `json:"cause,omitempty"`
	// What is the reason in a sentence, which names the file.
	What string `json:"what"`
}

// Cause is what is to blame when a command can't be started.
type Cause string

const (
	CauseProgram Cause = ""      // the program, its arguments or user
	CauseDir     Cause = "dir"   // the working directory
	CauseFiles   Cause = "files" // the guest's file systems, whoever asks
)

// Exited says how the command ended.
type Exited struct {
	ID uint32 `json:"id"`
	// Code is its exit code, if Signal is 0; Signal is the one that killed it.
	Code   int  `json:"code"`
	Signal int  `json:"signal,omitempty"`
	Core   bool `json:"core,omitempty"`
	// OOM: the kernel has killed it for want of memory, or others while it ran and
	// it ended by SIGKILL itself. OOMKills is how many processes the kernel has killed
	// for that while it ran, of whichever command.
	OOM      bool `json:"oom,omitempty"`
	OOMKills int  `json:"oom-kills,omitempty"`
	// What is what went wrong for OpRead and OpWrite, "" if nothing.
	What string `json:"what,omitempty"`
	// Lost is an output of which not all could be sent, LostInput what the command did
	// not get all of although it was still reading; nil if there is none.
	Lost      *Lost `json:"lost,omitempty"`
	LostInput *Lost `json:"lost-input,omitempty"`
	// User, System and Wall are the times it took in nanoseconds; MaxRSS is in KiB.
	User   int64 `json:"user,omitempty"`
	System int64 `json:"system,omitempty"`
	Wall   int64 `json:"wall,omitempty"`
	MaxRSS int64 `json:"max-rss,omitempty"`
}

// MaxLost bounds the text of a Lost, in bytes.
const MaxLost = 200

// Lost says that the rest of an output is lost, though the host had not closed its
// stream; or of an input, though it was to go on, as Input says.
type Lost struct {
	// Stream is 1 for standard output, 2 for error, or Terminal; an input's is 0 or
	// Terminal.
	Stream uint8 `json:"stream"`
	// What is the reason.
	What string `json:"what"`
}

// Signal sends a signal to the command, or, if it has a terminal of its own, to the
// foreground of that. SIGKILL is for both.
type Signal struct {
	ID     uint32 `json:"id"`
	Signal int    `json:"signal"`
}

// Resize gives the command's terminal another size.
type Resize struct {
	ID   uint32 `json:"id"`
	Size Size   `json:"size"`
}

// Input says that what the host had for a command to read has ended, or that no more of it
// can be sent, and how much that was. The end of the stream alone says nothing: the host
// may have given it up.
type Input struct {
	ID uint32 `json:"id"`
	// Stream is 0 for standard input, or Terminal.
	Stream uint8 `json:"stream,omitempty"`
	// Bytes is how many bytes there were, or HungUp.
	Bytes int64 `json:"bytes"`
}

// HungUp is in place of an Input's Bytes where the host has closed a terminal.
const HungUp = -1

// Ping is answered with a frame of KindPong that has the same number.
type Ping struct {
	Seq uint64 `json:"seq"`
}

// Poweroff ends the guest: commands that still run are killed, file systems are
// synced and unmounted as far as they can be.
type Poweroff struct {
	// SyncOnly stops behind the sync and says Pong of Seq then: the host ends the
	// machine, which is faster.
	SyncOnly bool   `json:"sync-only,omitempty"`
	Seq      uint64 `json:"seq,omitempty"`
}

// Clock sets the guest's clock, if that is off, in nanoseconds since 1970.
type Clock struct {
	Unix int64 `json:"unix"`
	// Hello says that this is the host's time when the agent's Hello had come. The host
	// sends that at once, and nobody waits for it: what it is when it comes is between
	// this and as much more as has passed since the Hello.
	Hello bool `json:"hello,omitempty"`
}

// Renew says that names of the root's share lead elsewhere than the guest may
// remember.
type Renew struct{}

// Log is a line that an operator may want to know.
type Log struct {
	Text string `json:"text"`
}
