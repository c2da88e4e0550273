"""What was decided by hand when the facts were chosen: whom to include, what to leave out, which names take "the"."""


def _names(text: str) -> frozenset[str]:
    """Names between bars."""
    return frozenset(name.strip() for name in text.split("|"))


WELL_KNOWN = _names(
    """Eiffel Tower|British Museum|Mona Lisa|Taj Mahal|Danielle Darrieux|Steve Jobs|Bill Gates|Tim Cook
    |Satya Nadella|Alan Sugar|Jeremy Clarkson|Albert Einstein|Isaac Newton|Charles Darwin|Karl Marx|Marie Curie
    |Charles Babbage|David Hilbert|Giordano Bruno|Paracelsus|William Herschel|Sofia Kovalevskaya|Julian Huxley
    |Tycho Brahe|Ibn Khaldun|Miles Davis|John Coltrane|Duke Ellington|Franz Liszt|Richard Wagner|Giuseppe Verdi
    |Johannes Brahms|Joseph Haydn|Johann Christian Bach|Tomaso Albinoni|Carl Orff|Edvard Grieg|George Gershwin
    |Leonard Bernstein|Robert Schumann|Luciano Pavarotti|Thelonious Monk|Aretha Franklin|Leonard Cohen
    |Elvis Presley|Paul McCartney|Lou Reed|Vincent van Gogh|Leonardo da Vinci|Michelangelo|Auguste Rodin|Masaccio
    |Coco Chanel|Montesquieu|Franz Kafka|Jean-Paul Sartre|Martin Buber|John Calvin|Rudolf Steiner
    |Otto von Bismarck|Angela Merkel|Vladimir Putin|David Cameron|John Major|Georges Pompidou|Luc Besson|Akbar
    |Babur|Joe Montana|Drew Brees|Johnny Unitas|Tim Tebow|Lionel Messi|David Beckham|The Sopranos|The Simpsons
    |Saturday Night Live|The Big Bang Theory|Law & Order|Criminal Minds|Big Love|The Decameron|Anna Karenina
    |The Three Musketeers|Charlie Hebdo|Aftonbladet|RuneScape|Inuyasha|Limoncello|iPhone|iPad|iPod|Mac Pro|iTunes
    |Windows 7|Windows XP|Windows 95|Xbox 360|Safari|Chromecast|Internet Explorer|Gmail|YouTube|Nintendo|Samsung
    |Nikon|Scania|EMI|Chanel|Prada|Givenchy|Boeing|Ericsson|United Airlines|Kraftwerk|Rammstein|South Korea
    |Portugal|Austria|Greece|France|Spain"""
)
"""Subjects that readers know; they are chosen first and need no common object."""

PREFERRED_OBJECT = {("Albert Einstein", "P937"): "Berlin", ("Spain", "P37"): "Spanish"}
"""Which object to keep where ParaRel lists several."""

LEFT_OUT: dict[str, tuple[str, ...]] = {
    "P17": (
        "Christian Democrats",
        "United Mine Workers",
        "VR warehouses",
    ),
    "P27": (
        "Thousand Foot Krutch",
        "Trajan",
    ),
    "P30": (
        "Umayyad Caliphate",
        "Exarchate of Ravenna",
    ),
    "P36": (
        "4th of August Regime",
        "Seine",
        "British North America",
        "British America",
        "Egypt Eyalet",
    ),
    "P37": (
        "Nokia",
        "Exarchate of Ravenna",
        "North Kosovo",
        "Kosovo",
    ),
    "P39": (
        "Abbas I of Persia",
        "John Calvin",
    ),
    "P101": (
        "John Coltrane",
        "Richard Wagner",
        "A Thousand Plateaus",
        "Galileo Galilei",
    ),
    "P103": ("Marie Curie",),
    "P106": (
        "H. P. Lovecraft",
        "Lou Reed",
        "Callixtus II",
    ),
    "P127": (
        "Eiffel Tower",
        "Video CD",
        "DVD",
        "Paris",
    ),
    "P136": ("The Beatles",),
    "P140": (
        "Jesus Christ",
        "Buddhist philosophy",
        "Talmud Torah school",
    ),
    "P159": ("Christian Democrats",),
    "P276": (
        "Talvar",
        "Miraflores Altarpiece",
        "Hitachi",
        "Welsh Guards",
        "Immortal Game",
        "Great Smog",
        "Mr Selfridge",
        "Habitat II",
        "Federation Trail",
        "Chicanos Por La Causa",
        "Sinagua",
        "Just for Laughs",
    ),
    "P364": (
        "Melodifestivalen 1996",
        "Melodifestivalen 2005",
        "The Price Is Right",
    ),
    "P407": (
        "Spanish treasure fleet",
        "Jokela school shooting",
        "Dwynwen",
        "Blodeuwedd",
        "Olwen",
        "Branwen",
        "The Pirate Bay",
        "Goodreads",
        "Asian Scientist",
    ),
    "P413": (
        "Todd Helton",
        "Joe Paterno",
        "Graham Taylor",
    ),
    "P449": ("Sherlock Holmes",),
    "P495": (
        "Juan de Juanes",
        "The X Factor",
    ),
    "P937": ("Bahamas",),
    "P1412": (
        "Alaska",
        "Jesus Christ",
        "Baal Shem of London",
    ),
}
"""Subjects left out of a relation after proof-reading: wrong, odd, or about another thing of that name."""

UNSUITED_OBJECTS = _names(
    "Netherlands|Philippines|Bahamas|Maldives|Gambia|Americas|Sky|History|Word|musician|Arizona|Hollywood"
)
"""Objects that would need an article, are mangled, or answer another question."""

EVENTS = (
    r"Battle|Siege|Cup|Grand Prix|Games|Open\b|Championship|Marathon|[Cc]onference|[Rr]iot|massacre|bomb|Race|Derby"
    r"|\bWar\b|Congress|Convention|Treaty|Tournament|insurgency|[Rr]evolt|Operation|[Uu]prising|[Ee]lection|League|\d"
    r"|Offensive|Storming|Pact|[Ss]hooting|people|Resistance|Revolution|festival|trial|attack"
)
"""Places and countries are not asked of events."""

THE_LAST_WORD = _names(
    """Tower|Museum|Bridge|Palace|Gallery|Library|Institute|Festival|Theatre|Theater|River|Cathedral|Observatory
    |Arena|Stadium|Orchestra|Republic|Empire|Islands|Mountains|Corporation|Foundation|Society|Association
    |Federation|Union|League|Times|Gazette|Herald|Opera|Archive|Archives|Collection|Monument|Memorial|Emirates
    |States|Party|Company|Band|Zoo|Hospital|Circus|Kingdom"""
)
"""A name of several words that ends in one of these takes "the"."""

THE_FIRST_WORD = _names(
    """Museum|University|Kingdom|Republic|Bank|Church|Duchy|Province|Tower|Palace|House|Institute|Academy|Empire
    |Crown|Principality|Emirate|Isle|Gulf|Port"""
)
"""A name such as "University of Washington" takes "the"."""

TAKES_THE = _names(
    """Mac Pro|Chromecast
    |Mona Lisa|Arc de Triomphe|Taj Mahal|Louvre|London Eye|Brandenburg Gate|Grand Mosque of Paris|Garabit viaduct
    |Munich Residence|City of Cranbourne|Shire of Wambo|Surat Basin|Thuringian Highland|Kingston Whig-Standard
    |Marquis de Sade|Flemish Community|Flemish Region|Fatimid caliphate|Ayyubid dynasty|Tughlaq dynasty
    |Khalji dynasty|Lodi dynasty|Khedivate of Egypt|Habsburg Monarchy|Free State of Prussia|Bourbon Restoration
    |Masovian Voivodeship|Waikato Region|Orange Free State|Holy See|Canton of Lucerne|Bernese Oberland
    |Exarchate of Ravenna|Umayyad Caliphate|Zunghar Khanate|Dominican Order|Grey Nuns|East River Tunnels
    |North River Tunnels|Beech Grove Shops|Serpent Column|Basilica Cistern|Turkish State Cemetery
    |Turkish Military Academy|Presidential Mansion|Capitol Records Building|Stansted Express|Devonshire Arms
    |Fitzroy Tavern|Peoples Temple|Lord's Prayer|Nuremberg Chronicle|Sator Square|Toronto Star|Mario franchise
    |Lumia series|Norwegian News Agency|Middle East Forum|B-52 Stratofortress|KC-767|B-47 Stratojet
    |B-17 Flying Fortress|Xbox 360|iPod Touch|ThinkPad|Bahamas|Comoros|Soviet Union|European Union|Blue Nile
    |Masoretic Text"""
)
"""Names that take "the" though no rule says so."""

TAKES_NONE = _names("Sandy Bridge|Calamari Union|Telia Company|Exmor|CineAlta|PowerFlite|SteadyShot|Simon Boccanegra")
"""Names that take no article though a rule says so."""
