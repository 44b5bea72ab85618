"""The gallery: defences that fell beside those that hold, each attacked plainly and adaptively."""
