package net

// For the tests outside: what they can't see.
var NewWithClock = newDevice

const (
	HoldPatience = holdPatience
	BatchFrames  = batchFrames
	MaxReceive   = maxReceive
	MaxFrame     = maxFrame
	MaxFilter    = maxFilter
)

var Settle = settle
