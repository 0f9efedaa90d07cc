"""Plots about growing: a fear, a promise, a visit, rain, a seed, a night without a bear."""

from __future__ import annotations

from story_beats import plot

FEAR = plot(
    "fear",
    """
@open

@likes

{hero} was [afraid of|scared of] almost nothing, but {hero:he} was afraid of {+fear}.
There was [only|just] one thing [that|in the world that] {hero} was [afraid|scared] of, and that was {+fear}.
{hero} was [afraid of|scared of] {+fear}, and {hero:he} [told no one|had always been|did not know why].

{hero:He} {fear:avoid}.
{hero:He} {fear:avoid}, [and {hero:he} hoped that nobody would notice|and nobody knew why].

<one_day>, {hero:his} friend {+friend} asked {hero:him} to {fear:test}.
<one_day>, {hero:his} friend {+friend} [came by|stood at the door|rang the bell] and wanted to {fear:test}.
<one_day>, {hero} had to {fear:test}, and {hero:his} friend {+friend} came along.

<heart>. // "[I can't do it|No, not me|Please, not me]," {hero:he} [said|whispered].
{hero} wanted to [run away|hide|go home|be somewhere else]. // <heart>.

"Are you afraid?" asked {friend}<kindly>. // {hero} [nodded|looked at the ground|said nothing].
"It is because of {fear}," said {hero}<sadly>. // "I [am afraid|am so afraid|wish I were brave], {friend!}."

"[I was afraid once too|Everyone is afraid of something|I am afraid of spiders]," <said> {friend}<kindly>. //
    "[Just take one small step|Start with one small step|You don't have to do it all at once]."
"[I will stay with you|I am right here|You are not alone]," <said> {friend}<kindly>. //
    "[We will go slowly|One little step is enough|You can stop when you want]."

?
Then {friend} took {+token:a} out of a pocket and gave it to {hero!}. // "[It brings luck|Hold on to it]," {friend:he} said.
For luck, {friend} <gave> {+token:a} to {hero!}.

{hero} [took a deep breath|closed {hero:his} eyes|counted to three|bit {hero:his} lip] and {fear:step}.
{hero} [held on to {friend}|looked at {friend}]. // Then {hero:he} {fear:step}.

[It was not so bad|Nothing bad happened], so {hero:he} [tried a little more|went a little farther|did it again].
Then came a second [step|try], and then a third[, and then a fourth|]. // {hero}'s heart [grew calm|slowed down|grew lighter|was warm].
"[Very good|Well done|You see], {hero!}," said {friend}, and {hero} [went on|dared a little more].

And then {hero} [noticed|saw|found out] that {fear:truth}.
To {hero:his} [great surprise|surprise], {fear:truth}.
And do you know what? // {hero} [noticed|saw|found out|could hardly believe it, but {hero:he} saw] that {fear:truth}.

"I did it! I did it!" <called> {hero}<gladly>.
"[Look at me|Again|One more time]!" <called> {hero}, and {friend} [clapped|laughed|cheered].
{hero} <was_proud>, and {friend} [clapped|cheered|danced].

?
"[You are brave|That was brave], {hero!}," said {friend}<kindly>. //
    "[Being brave means being afraid and going on|I knew you could do it]."
Then {hero} gave {friend} a <hug>. // "Without you, {friend!}, I would never have tried," {hero:he} said.
"[Now it is your turn|And now we will look for a spider]," said {hero} to {friend!}, and both of them laughed.

Never again was {hero} [so|quite so] [afraid|scared] of {fear}.
<forever>, when {hero} was [afraid|scared], {hero:he} [took|tried] one small step, and [then another|then one more|thought of {friend!}].
The {token} [stayed|had a place] [on the windowsill|by the bed], and whenever {hero} was afraid, {hero:he} held it tight.
@end_solo
@end_pair

@the_end
""",
)

PROMISE = plot(
    "promise",
    """
@open

{hero:His} friend {+friend} [lived next door|lived across the lane|lived on the other side of the bridge].
{hero:He} had a [good|dear|best] friend named {+friend}.

<one_day>, {friend} had to [go away|go to town] for [a day|two days|a week]. //
    "Will you {+chore} for me?" {friend:he} asked {hero!}.
<one_day>, {friend} [was going on a trip|had to leave] and asked {hero!}, "Can you {+chore} while I am gone?"

"[I promise|Of course, I promise|Yes, I promise]," <said> {hero}<gladly>.
"You can count on me, {friend!}," <said> {hero}<kindly>. // "[I promise|That is a promise]."
{hero} [looked very serious|nodded three times|stood up very straight] and promised [it|{friend} to do it].

?
{friend} gave {+box:a} to {hero!}. // "Everything you need is in it," said {friend}.
{friend} <gave> the key to {hero!} and [waved|set off].

But [that very day|the next morning|the next day], {+fun}.
[The sun was shining|It was a <fine> day], and {+fun}.

"[Come on|Hurry up|Come with us], {hero!}!" <called> the others.
"[Come along|Quick, {hero!}|Hurry, {hero!}], or you will miss [it all|the fun|everything]," <called> [the others|someone|the neighbors].
{hero} heard the [music|laughter|noise], and {hero:his} feet wanted to [run|dance|go].

{hero} wanted to go [so much|very much|more than anything]. // But [had {hero:he} not promised|what about the promise]?
{hero} had already put on {hero:his} shoes when {hero:he} [remembered|thought of] {friend!}.
"Just this once," thought {hero}. // But then {hero:he} [thought of|remembered] {friend!}.

"A promise is a promise," {hero} [said|told the others|said aloud]<sadly>.
"I can't come yet," <said> {hero}. // "[I gave my word|First I must keep a promise|A friend is counting on me]."

So {hero} went to {friend}'s house, opened the {box!} and {chore:did}.
So {hero} went to {friend}'s house and {chore:did}, [very carefully|quickly but well|just as {friend} would have done it].
{hero} <went> to {friend}'s house. // There {hero:he} {chore:did}, and {hero:he} did not [hurry|forget anything].

?
It took [a long time|all morning|two whole hours], and [far away it grew quiet|the clock struck twelve|{hero} heard the others laugh|the shadows grew longer].
When it was done, {hero} [wiped {hero:his} forehead|smiled|sat down for a moment].

When {hero} [was done|had finished], {hero:he} [ran|hurried] to see the [rest|end], and there was [still time|still enough fun
    |plenty left] for {hero:him}.
{hero} missed the [beginning|best part], but {hero:he} [did not mind|was glad all the same].
Then {hero} [hurried|ran] to the others, and they had [saved {hero:him} a place|waited for {hero:him}].

When {friend} came home, {chore:result}.
{friend} came back [on <weekday>|in the evening|soon after], and {chore:result}.

"You kept your promise, {hero!}," said {friend}<gladly>.
"Thank you, {hero!}! I knew I could [count on you|trust you]," said {friend}<gladly>.
{friend} <was_glad> and gave {hero!} a <hug>.

{friend} had brought {+trinket:a} [from far away|from town|from the trip] and gave it to {hero!}.
"I have brought you something," said {friend}, and gave {+gift:a} to {hero!}.

{hero} <was_proud>, and that [felt better|was better] than any [fun|show|music].
{hero} learned that [a kept promise makes you tall|keeping your word makes friends happy].
@end_friends

@the_end
""",
)

VISIT = plot(
    "visit",
    """
@open

{hero:His} {+kin} lived [far|a long way] away, [over the hills|on the other side of the lake|in a house with a red roof|near the mountains].
{hero:He} had not seen {hero:his} {+kin} for a [long|very long] time, [only|but there were] letters [every week|now and then|full of drawings].

<one_day>, {hero} [was allowed to visit|went to visit] {kin:him}, all [alone|by {hero:himself}].
One [summer|spring|autumn|winter], {hero} was [old|big] enough to visit {kin:him} [alone|without mom and dad|all by {hero:himself}].

{hero:He} [took|carried] {+gift:a} along as a [present|gift] and got on the [train|bus|boat].
{hero:He} packed {+gift:a} as a present and [a book|a sandwich|warm socks] for the way.
{hero:He} wanted to bring {kin:him} something, so {hero:he} packed {+gift:a}.

?
The [train|bus|boat] [hummed|rocked|rattled|sang], and [fields|hills|cows|trees|villages] and [more fields|towers|clouds|bridges] went by.
The trip was [long|slow], and {hero} [looked out of the window|counted the cows|hummed a tune].

{hero:His} {kin} was waiting [at the gate|on the steps|with open arms], and {hero} gave the {gift} to {kin:him!}.
"[There you are|How tall you are|Welcome], {hero!}!" called {hero:his} {kin}, and {hero} ran into {kin:his} arms.

?
"[How lovely|What a beautiful {gift}]," said {hero:his} {kin}, and put the {gift} [on the shelf|by the window].
The [house|kitchen|hall] smelled of [apples|soap|wood and honey|cinnamon|old books], just as {hero} remembered.

[Together|That day|After lunch], {hero} and {hero:his} {kin} {+outing}, and {outing:smell}.

[But at night|But when it was dark|But later], the bed was [big|strange|wide|cold], and {hero} [heard the clock tick|heard the wind
    in the chimney|saw odd shadows|listened to every sound].
When {hero} lay in bed, everything [was strange|sounded different], and [the moon made long shadows|the stairs creaked].

{hero} missed [home|{hero:his} own bed|the sounds of home|the cat at home], and a [big|small|warm] tear [rolled down {hero:his} cheek
    |fell on the pillow].
{hero} [tossed and turned|pulled the blanket up high|counted sheep|turned the pillow over], but [{hero:he} could not|it was hard to]
    [sleep|fall asleep].
{hero} hugged the pillow [tight|very tight], but [{hero:he} could not|it was hard to] [sleep|fall asleep].

{hero:His} {kin} [heard {hero:him}|came in with a candle|sat down on the bed]. //
    "[Are you homesick|Can't you sleep]?" {kin:he} asked<kindly>.
The door opened [softly|a little]. // "[Are you homesick|Can't you sleep|Do you miss home], {hero!}?" asked {hero:his} {kin}.

"Do you see the [moon|big moon|moon up there], {hero!}?" asked {hero:his} {kin}<kindly>. //
    "[The same moon shines on|It shines on|Right now, it looks down at] your [house|own bed|garden|little room] [too|as well]."
"Look out of the window, {hero!}," said {hero:his} {kin}<kindly>. // "[The same|Your own|The very same] moon shines at home."
{hero:His} {kin} told {hero:him} a story about {+beast:a} that
    [was homesick too|lived on the moon|had lost its way and found it again].

{hero} [looked|listened] for a [long time|long while|little while], and [the big bed became warm|the room was not strange any more
    |the night felt soft again].
That [helped|was a good thought|made {hero} smile], and soon {hero:he} was [fast asleep|asleep|dreaming of home].

?
The next day, {hero} and {hero:his} {kin} {+outing2}, and {outing2:smell}.
[In the morning|At breakfast], there were [pancakes|warm rolls|eggs], and {hero} [laughed again|was not homesick any more].

When it was time to go, {hero:his} {kin} gave {+trinket:a} to {hero!}. //
    "[Whenever you look at it, think of me|It will remind you of me]," {kin:he} said<kindly>.
When it was time to [go|go home|leave], {hero} [did not want to go|wanted to stay|was sad and glad at once]. // "[Come back soon|You can come back any time], {hero!}," said {hero:his} {kin}.

At home, {hero} put the {trinket} [on the windowsill|by {hero:his} bed], and when the moon [came up|was full], {hero:he} waved.
At home, {hero} [looked up at|said good night to|whispered to] the moon and [waved|smiled], and far away {hero:his} {kin} [looked up too
    |did the same|smiled too].
@end_solo

@the_end
""",
)

RAIN = plot(
    "rain",
    """
@open_two

[All week|For days|Since <weekday>], {p} and {q} had looked forward to <weekday>. // They wanted to {+plan}.
[For days|All week], {p} and {q} [talked about|thought of] one thing only. // On <weekday> they would {+plan}.
<one_day>, {p} and {q} wanted to {+plan}.

?
{p} and {q} [could hardly wait|talked of nothing else|counted the hours]. //
    {x} <gave> {+token:a} to {y!} so that [it would be lucky|the sun would shine|nothing would go wrong].
When {p} met {q} that morning, {x} <gave> {+token:a} to {y!} for luck.

[Everything was ready|{p} and {q} had packed everything|{p} and {q} were about to leave] when [dark|gray|fat] clouds came [up|over the hill
    |from the sea].
But when {p} and {q} looked out [that morning|of the window], the sky was [gray|dark|full of clouds].

[Plip, plop|Drip, drop|Splish, splash]! // It began to [rain|pour], and {p} and {q} [ran for the door|stood there|pulled up their hoods].
It [rained and rained|poured and poured], as if [the sky had a hole|someone had tipped over a bucket|it would never stop], and
    {p} and {q} [stood at the window|got their socks wet|looked at each other].
The rain [drummed|danced|splashed|rattled] on the [roof|steps|street|windows], and [soon there were puddles everywhere|the path turned into a river|even the ducks looked wet].

"Now we can't {plan}," said {hero}<sadly>.
"Oh no, {friend!}," said {hero}. // "[Everything is spoiled|Our day is spoiled|I was looking forward to it so much]."
{hero} pressed {hero:his} nose against the window and [sighed|counted the drops|wanted to cry].

{friend} <was_sad> too. // But then {friend:he} [had an idea|jumped up|began to smile].
"[Wait|I know|Listen]," said {friend}<kindly>. //
    "[Who says that we need the sun|The rain can't come in here|We can do it anyway], {hero!}."
"[If we can't go out, we will|Rain or no rain, we will|We don't need the sun, we will just] [do it in here|stay in|have fun
    inside], {hero!}," said {friend}<kindly>.

?
Quickly, {friend} ran to get [pillows|paint and paper|blankets] and <gave> some of them to {hero!}.
"First we need something to eat," said {friend}, and gave {+treat:a} to {hero!}.
{hero} [laughed|clapped]. // "You have the best ideas, {friend!}," {hero:he} said.

So {p} and {q} {plan:instead}.
[Inside|In the living room|Warm and dry], {p} and {q} {plan:instead}.

[Nobody noticed how the time went by|The rain drummed like music|The hours flew], and {p} and {q} laughed until
    [they fell over|it was dark|their tummies hurt|the cups rattled].
{p} made [jokes|funny noises|faces], and {q} laughed so [hard|much] that [the cat woke up|the windows shook|a chair fell over].
It was [louder|warmer|funnier|cozier] and [sillier|happier|more fun] than it [would have been|could have been|had ever been] [outside|in the sun|in dry weather].

?
Even the [cat|dog|baby|neighbors] [came in and joined them|wanted to play too].
Then there was [hot cocoa|warm bread|tea with honey], and it had never tasted so good.

[Suddenly|Then|Later|<at_last>], the rain [stopped|was over|went away], and [there was|they saw|{p} saw] a rainbow over the [hills|roofs|trees|town|river].
When {p} looked out, the [sun was back|rain was over], and {q} [pointed at|saw] a rainbow [in the sky|over the roofs].
{p} and {q} did not even notice that the rain had stopped.

?
"[Shall we go out now|Can we {plan} now|Do you want to go out], {q!}?" asked {p}. //
    "[One more round|Let's finish this first|Let's stay a little longer]," <said> {q}<gladly>.
{p} and {q} put on their boots and [jumped in every puddle|splashed about] until they were wet [all over|to the ears].

"That was the best [rainy day|day] ever," said {p}<gladly>. // "[I hope it rains again tomorrow|Thank you, rain]," <said> {q}.
<forever>, {p} and {q} were never sad about the rain again.
And whenever it rained, {p} looked at {q}, and both of them [smiled|laughed].
@end_friends

@the_end
""",
)

GARDEN = plot(
    "garden",
    """
@open

@likes

<one_day>, {hero:his} {+elder} gave a {+plant} to {hero!}. // "[Something big sleeps in it|Take good care of it]," {elder:he} said.
<one_day>, {hero} found a {+plant} in [an old coat|a drawer|a paper bag]. //
    "[Plant it|Put it in the ground]," said {hero:his} {+elder}, "and wait."

{hero} showed it to {hero:his} friend {+friend}. // "Let's plant it together," said {friend}<gladly>.
{hero:His} friend {+friend} came to help. // {p} dug a [little|small|deep] hole, and {q} put the {plant} in.

They [covered|patted] it with [dark|soft] earth, and {x} <gave> the watering can to {y!}.
{p} and {q} [covered it with earth|made a little fence], and {x} <gave> the bucket to {y!}, who watered it.

?
@gives

So {hero} [sat down|lay down] and waited. // Nothing happened.
"When will it [grow|come up]?" asked {hero}. // "[Not today|It takes its time|Seeds are slow]," <said> {hero:his} {elder}<kindly>.
Every [day|morning], {p} and {q} went to look, but there was [nothing|only earth].

"[It is broken|It does not like me|Maybe it is dead]," said {hero}<sadly>, and {hero:he} wanted to dig it up.
{hero} wanted to [dig it up|give up]. // "[It will never grow|We have waited long enough|It has forgotten us], {friend!}," {hero:he} said<sadly>.

"[Don't|Wait], {hero!}," said {friend}<kindly>. //
    "[It is working where we can't see it|It is only sleeping|Good things take time]."
But {friend} [shook {friend:his} head|held {hero:him} back]. // "One more [day|week], {hero!}," {friend:he} said<kindly>.

?
So {p} and {q} waited, and they [watered it|sang to it|told it stories] every [day|morning|evening].
The sun shone, and the rain fell, and {p} and {q} [waited|learned to wait].

[Then|And then], one <fine> <time>, there was a [tiny|little] [green|pale green] [tip|leaf|dot] [in the earth|in the ground|where {p} and {q} had dug].
[Then|And then], on a <weekday>, something [green|small and green|pale and thin] [looked out of the ground|came up|stood there in the sun].

?
"Come quickly, {p!}!" <called> {q}.
"It is [here|alive]!" <called> {p}, and {q} [danced|hopped] around it.

It grew and grew, [higher every day|day and night|a little more each day|in sun and rain], until [one day|at last|in the end]
    it was {plant:plant}.
[Week after week|Day after day|Slowly] it grew, and [in the end|when summer came|one fine day], [there|behind the house|by the fence]
    stood {plant:plant}.

?
[The whole street|Everyone in the village|The whole family] came to [see it|look], and {p} and {q} [were proud|were very proud].
"[You see|Well], {hero!}, it was worth the wait," said {hero:his} {elder}<kindly>.
Very gently, {hero} touched it. // "[So much from so little|And it was so small once]," {hero:he} whispered.

Of course, {hero} gave the [first|best|biggest] [piece|bit] of it to {friend!}, because {friend} had [waited too|not given up|believed in it].
[Soon after|Some time later], {friend} found a new {plant} and gave it to {hero!}. // "[Let's do it again|For next year]," said {friend}<gladly>.
In the [autumn|fall|end], {p} and {q} had [a whole bag|a pocket full|plenty] of new seeds, and they [gave one to everyone|planted them
    all|shared them with the birds].

@end_friends
@end_solo
And {hero} knew that good things [take time|begin small].

@the_end
""",
)

NIGHT = plot(
    "night",
    """
@open

Every night, {hero} slept with a [toy|stuffed] {+stuffed:kind} named {+stuffed}.
{hero:His} oldest friend was a [toy|stuffed] {+stuffed:kind}, and its name was {+stuffed}.
{hero:He} had a [toy|stuffed] {+stuffed:kind} with one [ear|eye] and [a big heart|a soft tummy], and its name was {+stuffed}.

?
{stuffed!} was [old|patched|almost bald], and {hero} [told {stuffed} everything|could not sleep without {stuffed!}].
{hero} had made up the name all by {hero:himself}: {stuffed!}. // [Nobody else had a {stuffed!}|It sounded like a secret].

One evening, {hero} was in bed and [reached|felt] for {stuffed!}. // But {stuffed!} was not there.
One [windy|rainy|cold] evening, {stuffed!} was gone. // The place on {hero}'s pillow was empty.

"Where is {stuffed!}?" <called> {hero}.
"I can't sleep without {stuffed!}," said {hero}, and {hero:his} lip [trembled|shook].

{hero:His} {+elder} came in[ with a candle| with a lamp|]. // "Where did you last see {stuffed!}?" {elder:he} asked<kindly>.
"Think back," said {hero:his} {+elder}<kindly>. // "Where did you play with {stuffed!} today?"

?
"[In the garden|In the kitchen|On the stairs|Under the table]," <said> {hero}. // But {stuffed!} was not there.
{hero} [thought and thought|closed {hero:his} eyes]. //
    First there was [breakfast|a bath], then there was [the garden|lunch|a long game].

They looked in {+box:a} and [under the bed|behind the curtain|in the bath], but there was [only dust|only wool|no {stuffed!}].
They looked [under the bed|behind the curtain|in the bath], but there was no {stuffed!}.

?
Outside, [an owl called|the rain fell|the wind blew]. // "[{stuffed!} is all alone|{stuffed!} will be cold]," whispered {hero}.

Then {hero} [sat up|jumped up]. // "Now I [know|remember]! I gave {stuffed!} to {+friend}."
Then {hero} remembered. // "I [lent|gave] {stuffed!} to {+friend}!"
<at_last>, {hero} remembered {hero:his} friend {+friend}.

{friend} had been [sad|ill] that day, and {hero} had given {stuffed!} to {friend!} to make {friend:him} feel better.
That afternoon, {friend} had [cried|been sick in bed], and so {hero} had lent {stuffed!} to {friend!}.

"[Shall we go and get {stuffed!}|Do you want {stuffed!} back]?" asked {hero:his} {elder}. //
    {hero} thought about it for a [long time|moment].
{hero:His} {elder} [looked at {hero:him}|waited]. // "[What would {stuffed!} want|What shall we do]?" {elder:he} asked<kindly>.

"[No|Not tonight]," <said> {hero}<sadly>. // "Tonight {friend!} needs {stuffed!} more than I do."
"{stuffed!} [would stay with|wants to help] {friend!}," <said> {hero}. //
    "[Tonight I will try it alone|I am big enough for one night]."

{hero:His} {elder} [kissed {hero:him}|gave {hero:him} a <hug>] and [left the door open|left the lamp on|sang a song].
"That is very kind of you, {hero!}," said {hero:his} {elder}, and stayed until {hero} fell asleep.

The next morning, {friend} [came over|was well again] and gave {stuffed!} back to {hero!}.
In the morning, {friend} stood at the door. // "{stuffed!} helped me," said {friend}, and gave the {stuffed:kind} to {hero!}.

?
{stuffed!} had a new [ribbon|button|patch], [and it was blue|and it looked very fine|sewn on with love].
"Was {stuffed!} good?" asked {hero}. // "{stuffed!} was [very brave|the best]," <said> {friend}<gladly>.

{hero} <was_glad> and [hugged|kissed] {stuffed!}. // "[Good work|You were brave|Welcome home]," {hero:he} whispered.
<forever>, {stuffed!} went to whoever was [sad|sick|afraid], and always came back to {hero!}.
<evening>, {hero} and {stuffed!} slept [well|deeply|until late], and {friend} did too.

@the_end
""",
)

PLOTS = (FEAR, PROMISE, VISIT, RAIN, GARDEN, NIGHT)
